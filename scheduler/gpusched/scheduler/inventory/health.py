"""What is wrong with a GPU, as far as the driver tells: errors of calls, Xid events, counters of memory errors."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, TypeVar

from gpusched.scheduler.inventory import faults

_T = TypeVar("_T")

_MAX_EVENTS_A_READING = 64


class Look:
    """One reading of a GPU: its questions to the driver, and the faults met, in the order met.

    Args:
        nvml: a module like `pynvml`.
    """

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml
        self.faults: list[str] = []

    def add(self, fault: str) -> None:
        """Note a fault, once; empty for none."""
        if fault and fault not in self.faults:
            self.faults.append(fault)

    def required(self, ask: Callable[[], _T], otherwise: _T) -> _T:
        """An answer that a healthy GPU gives; failing that, a fault (unless this kind of GPU never tells)."""
        try:
            return ask()
        except self._nvml.NVMLError as error:
            if error.value != faults.NOT_SUPPORTED:
                self.add(in_words(error))
            return otherwise

    def optional(self, ask: Callable[[], int]) -> int:
        """An answer for show, -1 where there is none."""
        try:
            return ask()
        except self._nvml.NVMLError as error:
            if error.value in faults.SICK:
                self.add(in_words(error))
            return -1


class Board:
    """The health of a whole GPU, which its MIG instances share.

    Each has its own event set, so that a sick GPU does not stand in the way of asking its neighbours.

    Args:
        nvml: a module like `pynvml`.
        handle: of the whole GPU.
    """

    def __init__(self, nvml: Any, handle: Any) -> None:
        self.handle = handle
        self._nvml = nvml
        self._events = _watch_xids(nvml, handle)
        self._xid_fault = ""
        self._ecc_errors = 0
        self._ecc_accepted = 0

    def clear(self) -> None:
        """Forget an Xid, and accept the memory errors counted so far."""
        self._xid_fault = ""
        self._ecc_accepted = self._ecc_errors

    def close(self) -> None:
        """Let go of the event set."""
        events, self._events = self._events, None
        if events is not None:
            with contextlib.suppress(self._nvml.NVMLError):
                self._nvml.nvmlEventSetFree(events)

    def poll_xids(self, look: Look) -> None:
        """Take the events that have come in; does not wait for any."""
        nvml, events = self._nvml, self._events
        for _ in range(_MAX_EVENTS_A_READING if events is not None else 0):
            try:
                event = nvml.nvmlEventSetWait_v2(events, 0)
            except nvml.NVMLError as error:
                if error.value in faults.SICK:
                    look.add(in_words(error))
                break  # nothing more to tell
            if int(event.eventType) == nvml.nvmlEventTypeXidCriticalError:
                self._xid_fault = self._xid_fault or faults.xid_fault(int(event.eventData))
        look.add(self._xid_fault)

    def check_memory(self, look: Look) -> None:
        """Look at the counters of memory errors and repairs."""
        nvml, handle = self._nvml, self.handle
        errors = look.optional(
            lambda: int(
                nvml.nvmlDeviceGetTotalEccErrors(
                    handle, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
                )
            )
        )
        if errors >= 0:
            self._ecc_errors = errors
            self._ecc_accepted = min(self._ecc_accepted, errors)  # a reset starts the count afresh
        look.add(faults.ecc_fault(self._ecc_errors, self._ecc_accepted))
        pending = look.optional(lambda: int(nvml.nvmlDeviceGetRetiredPagesPendingStatus(handle)))
        remap_failed = look.optional(lambda: int(nvml.nvmlDeviceGetRemappedRows(handle)[3]))
        look.add(faults.retirement_fault(pages_pending=pending > 0, remap_failed=remap_failed > 0))


def in_words(error: Any) -> str:
    """An NVMLError for people."""
    return faults.error_in_words(int(error.value), str(error))


def _watch_xids(nvml: Any, handle: Any) -> Any:
    """An event set of this GPU alone, or None where there are no events to be had."""
    try:
        events = nvml.nvmlEventSetCreate()
    except nvml.NVMLError:
        return None
    try:
        nvml.nvmlDeviceRegisterEvents(handle, nvml.nvmlEventTypeXidCriticalError, events)
    except nvml.NVMLError:
        with contextlib.suppress(nvml.NVMLError):
            nvml.nvmlEventSetFree(events)
        return None
    return events
