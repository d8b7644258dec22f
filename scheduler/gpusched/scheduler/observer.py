"""Eyes on the GPUs: the look before a device is handed on, and the regular reading of all of them.

A blocking inventory (NVML) is asked on worker threads, with a time-out; a device that did not answer is
unhealthy and is not asked again while that call hangs. A simulated one is asked in place.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

from gpusched.scheduler.core import effects as do
from gpusched.scheduler.core import events as ev
from gpusched.scheduler.core.classify import Tenant, classify, classify_shared
from gpusched.scheduler.core.jobs import JobId
from gpusched.scheduler.core.model import Condition, DeviceReading, ProcessReading
from gpusched.scheduler.core.pool import Device
from gpusched.scheduler.driver import Driver
from gpusched.scheduler.ports import Inventory

log = logging.getLogger("gpusched.observer")

T = TypeVar("T")

#: A device that is not empty is looked at again after this long, doubling up to the second figure (seconds).
FIRST_LOOK_AGAIN = 0.02
LAST_LOOK_AGAIN = 1.0
#: How long the driver library may take for one call, in seconds.
CALL_TIMEOUT = 5.0


@dataclass(frozen=True, slots=True)
class _LastLease:
    """What is remembered of the lease that a device has, or had last."""

    job: int
    uid: int
    pids: frozenset[tuple[int, int]] = frozenset()

    def seen(self, processes: tuple[ProcessReading, ...]) -> _LastLease:
        new = frozenset((process.pid, process.start_ticks) for process in processes) - self.pids
        return replace(self, pids=self.pids | new) if new else self


_NO_LEASE = _LastLease(0, -1)


class Observer:
    """Reads the inventory and tells the engine. A listener of the driver.

    Args:
        driver: whom to tell.
        inventory: whom to ask.
        interval: seconds between two readings of everything.
    """

    def __init__(self, driver: Driver, inventory: Inventory, interval: float) -> None:
        self._driver = driver
        self._inventory = inventory
        self._interval = interval
        self._pool = driver.engine.pool
        self._executor = ThreadPoolExecutor(max(4, len(self._pool.devices) + 1), "nvml") if inventory.blocking else None
        self._hanging: set[str] = set()
        self._turns = {uuid: asyncio.Lock() for uuid in self._pool.devices}
        self._last: dict[str, _LastLease] = {}
        self._looking: dict[str, asyncio.TimerHandle | asyncio.Task[None]] = {}
        self._to_look: list[str] = []  # released since the loop last came round
        self._unlooked: set[str] = set()  # released and not seen to be empty since
        #: Bytes that a holder's own processes have on each of its devices, and of shared ones all that were seen there.
        self._memory: dict[tuple[str, JobId], int] = {}
        self._sharing: dict[tuple[str, JobId], frozenset[tuple[int, int]]] = {}
        self._peaks: dict[JobId, int] = {}  # the most that they had on all of the lease's together
        self._watchers: list[Callable[[], None]] = []
        #: The newest reading of each device, and when it was taken (engine's clock).
        self.readings: dict[str, tuple[DeviceReading, float]] = {}

    def on_effect(self, effect: do.Effect) -> None:
        if isinstance(effect, do.CheckDevices):
            self._released(effect.devices, effect.job)

    def watch(self, watcher: Callable[[], None]) -> None:
        """Have a function called after each reading of everything."""
        self._watchers.append(watcher)

    async def run(self) -> None:
        """Read everything, again and again."""
        while True:
            await self.read_all()
            await asyncio.sleep(self._interval)

    async def read_all(self) -> None:
        """One reading of every device; the engine is told in one event."""
        seen: list[ev.Seen] = []
        devices = list(self._pool.devices.values())
        holders = [device.holders for device in devices]
        for (device, reading), before in zip(await self._read_each(devices), holders, strict=True):
            self.readings[device.uuid] = (reading, self._driver.now())
            # One that changed hands meanwhile may have been read before: the old holder's processes, gone by now,
            # would be taken for strangers on the new one's GPU.
            if device.uuid not in self._looking and device.holders == before:
                seen.append(self._judge(device, reading.processes, reading.fault))
        self._note_peaks()
        if seen:
            self._driver.handle(ev.Observe(tuple(seen)))
        for watcher in self._watchers:
            watcher()

    def peak_memory(self, job_id: JobId) -> int:
        """The most GPU memory that a running job's own processes were seen to use, in bytes, on all its GPUs."""
        return self._peaks.get(job_id, 0)

    async def forgive(self, uuids: Iterable[str]) -> None:
        """Forget past faults of devices that are put back into service, and read them now."""
        for uuid in uuids:
            self._inventory.clear_fault(uuid)
            await self.refresh(uuid)

    async def refresh(self, uuid: str) -> None:
        """Read one device now (something is known to have changed)."""
        device = self._pool.devices[uuid]
        for _, reading in await self._read_each([device]):
            self.readings[uuid] = (reading, self._driver.now())
            found = self._judge(device, reading.processes, reading.fault)
            self._note_peaks()
            self._driver.handle(ev.Observe((found,)))
        for watcher in self._watchers:
            watcher()

    def close(self) -> None:
        for look in self._looking.values():
            look.cancel()
        if self._executor is not None:
            # A call that hangs in the driver library must not keep the process from ending.
            self._executor.shutdown(wait=False, cancel_futures=True)

    # -- the look before a device is handed on ---------------------------------------------------------

    def _released(self, uuids: tuple[str, ...], job_id: JobId) -> None:
        job = self._driver.engine.jobs.get(job_id)
        self._peaks.pop(job_id, None)
        for uuid in uuids:
            self._memory.pop((uuid, job_id), None)
            if job is not None:
                last = self._last.get(uuid, _NO_LEASE)
                if job.request.shared:
                    # What an earlier share left may still be there.
                    pids = self._sharing.pop((uuid, job_id), frozenset())
                    left = last.pids if uuid in self._unlooked else frozenset()
                    self._last[uuid] = _LastLease(job_id, job.spec.owner.uid, pids | left)
                elif last.job != job_id:
                    self._last[uuid] = _LastLease(job_id, job.spec.owner.uid)
                self._inventory.released(uuid, job.spec.owner, job.holder)
            self._unlooked.add(uuid)
            older = self._looking.pop(uuid, None)
            if older is not None:
                older.cancel()
        if self._executor is not None:
            for uuid in uuids:
                self._looking[uuid] = asyncio.create_task(self._look_until_empty(uuid))
            return
        # In place: the pass that follows this event already has the answer. One look for all of a burst.
        if not self._to_look:
            asyncio.get_running_loop().call_soon(self._look_at_released)
        self._to_look += uuids

    def _look_at_released(self) -> None:
        uuids, self._to_look = tuple(self._to_look), []
        self._look_in_place(uuids, FIRST_LOOK_AGAIN)

    def _look_in_place(self, uuids: tuple[str, ...], delay: float) -> None:
        seen = []
        for uuid in uuids:
            self._looking.pop(uuid, None)
            device = self._pool.devices[uuid]
            if device.holder is not None:
                continue
            found = self._judge(device, *self._ask(uuid))
            seen.append(found)
            if found.condition is not Condition.CLEAN:
                later = asyncio.get_running_loop().call_later(
                    delay, self._look_in_place, (uuid,), min(2 * delay, LAST_LOOK_AGAIN)
                )
                self._looking[uuid] = later
        if seen:
            self._driver.handle(ev.Observe(tuple(seen)))

    async def _look_until_empty(self, uuid: str) -> None:
        delay = FIRST_LOOK_AGAIN
        device = self._pool.devices[uuid]
        while device.holder is None:
            try:
                processes, fault = await self._call(uuid, lambda: self._ask(uuid))
            except TimeoutError as error:
                processes, fault = (), str(error)
            if device.holder is not None:
                break
            found = self._judge(device, processes, fault)
            if found.condition is Condition.CLEAN:
                self._looking.pop(uuid, None)
            self._driver.handle(ev.Observe((found,)))
            if found.condition is Condition.CLEAN:
                return
            await asyncio.sleep(delay)
            delay = min(2 * delay, LAST_LOOK_AGAIN)
        self._looking.pop(uuid, None)

    # -- asking ------------------------------------------------------------------------------------------

    def _judge(self, device: Device, processes: tuple[ProcessReading, ...], fault: str) -> ev.Seen:
        uuid, name = device.uuid, f"GPU {device.info.index}"
        last = self._last.get(uuid, _NO_LEASE)
        if device.shares:
            return self._judge_shared(device, processes, fault)
        if device.holder is None:
            # Until the device was seen to be empty, whatever else its last owner has there counts as left behind.
            uid = last.uid if uuid in self._unlooked else None
            verdict = classify(
                processes, gpu=name, fault=fault, known_pids=last.pids, previous_uid=uid, previous_job=last.job
            )
            if verdict.condition is Condition.CLEAN:
                self._unlooked.discard(uuid)
            return ev.Seen(uuid, verdict.condition, verdict.message)
        job = self._driver.engine.jobs[device.holder]
        holder = job.holder
        if last.job != job.id:
            last = _LastLease(job.id, job.spec.owner.uid)
        verdict = classify(processes, gpu=name, fault=fault, leased_to=holder, known_pids=last.pids)
        self._last[uuid] = last.seen(verdict.attributed)
        self._memory[uuid, job.id] = sum(process.memory_bytes for process in verdict.attributed)
        if holder is None and verdict.condition is Condition.FOREIGN:
            # Whose processes these are cannot be told of a caller that did not name its own (grpcurl).
            return ev.Seen(uuid, Condition.CLEAN)
        return ev.Seen(uuid, verdict.condition, verdict.message)

    def _judge_shared(self, device: Device, processes: tuple[ProcessReading, ...], fault: str) -> ev.Seen:
        uuid, jobs = device.uuid, self._driver.engine.jobs
        last = self._last.get(uuid, _NO_LEASE)
        tenants = [Tenant(job, jobs[job].holder, self._sharing.get((uuid, job), frozenset())) for job in device.shares]
        # A process of the last owner's that nobody else answers for is taken for his while it is looked for.
        looked_for = uuid in self._unlooked
        verdict = classify_shared(
            processes,
            gpu=f"GPU {device.info.index}",
            fault=fault,
            tenants=tenants,
            left_pids=last.pids if looked_for else frozenset(),
            previous_uid=last.uid if looked_for else None,
            previous_job=last.job,
        )
        if verdict.condition is Condition.CLEAN:
            self._unlooked.discard(uuid)
        taken = []
        for job in device.shares:
            own = verdict.attributed[job]
            seen = self._sharing.get((uuid, job), frozenset())
            self._sharing[uuid, job] = seen | {(process.pid, process.start_ticks) for process in own}
            self._memory[uuid, job] = sum(process.memory_bytes for process in own)
            taken.append((job, self._memory[uuid, job]))
        return ev.Seen(uuid, verdict.condition, verdict.message, tuple(taken))

    def _note_peaks(self) -> None:
        """After the devices of a lease were judged, each by itself."""
        totals: dict[JobId, int] = {}
        for (uuid, holder), size in self._memory.items():
            if size and holder in self._pool.devices[uuid].holders:
                totals[holder] = totals.get(holder, 0) + size
        for job_id, total in totals.items():
            self._peaks[job_id] = max(total, self._peaks.get(job_id, 0))

    def _ask(self, uuid: str) -> tuple[tuple[ProcessReading, ...], str]:
        """The quick look. A fault seen earlier stays until a full reading says otherwise."""
        fault = self.readings[uuid][0].fault if uuid in self.readings else ""
        try:
            return self._inventory.processes(uuid), fault
        except Exception as error:
            return (), _silence(uuid, error)

    def _read(self, uuid: str) -> DeviceReading:
        try:
            return self._inventory.read(uuid)
        except Exception as error:
            return DeviceReading(uuid, fault=_silence(uuid, error))

    async def _read_each(self, devices: list[Device]) -> list[tuple[Device, DeviceReading]]:
        if self._executor is None:
            return [(device, self._read(device.uuid)) for device in devices]
        return list(await asyncio.gather(*(self._read_slowly(device) for device in devices)))

    async def _read_slowly(self, device: Device) -> tuple[Device, DeviceReading]:
        uuid = device.uuid
        try:
            return device, await self._call(uuid, lambda: self._read(uuid))
        except TimeoutError as error:
            return device, DeviceReading(uuid, fault=str(error))

    async def _call(self, uuid: str, function: Callable[[], T]) -> T:
        """Run a call on a worker thread, one at a time for each device.

        Raises TimeoutError when it hangs, or one on this device still does.
        """
        async with self._turns[uuid]:
            silent = f"the driver did not answer within {CALL_TIMEOUT:g} s"
            if uuid in self._hanging:
                raise TimeoutError(silent)
            assert self._executor is not None
            future = asyncio.get_running_loop().run_in_executor(self._executor, function)
            try:
                return await asyncio.wait_for(asyncio.shield(future), CALL_TIMEOUT)
            except TimeoutError:
                self._hanging.add(uuid)
                future.add_done_callback(lambda _: self._hanging.discard(uuid))
                raise TimeoutError(silent) from None


def _silence(uuid: str, error: Exception) -> str:
    """The fault of a device that could not be asked. Anything but OSError is a bug, and must not end the looking."""
    if not isinstance(error, OSError):
        log.error("reading %s failed", uuid, exc_info=error)
    return str(error) or "does not answer"
