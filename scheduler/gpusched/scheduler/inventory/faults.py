"""What the driver's error codes and Xid numbers mean for a GPU: which say that it is broken, in words for people."""

from __future__ import annotations

from typing import Final

# Codes of NVML's C interface (nvmlReturn_t): fixed numbers, the same in every driver.
UNINITIALIZED: Final = 1
NOT_SUPPORTED: Final = 3
NO_PERMISSION: Final = 4
INSUFFICIENT_SIZE: Final = 7
INSUFFICIENT_POWER: Final = 8
DRIVER_NOT_LOADED: Final = 9
TIMEOUT: Final = 10
IRQ_ISSUE: Final = 11
LIBRARY_NOT_FOUND: Final = 12
FUNCTION_NOT_FOUND: Final = 13
GPU_IS_LOST: Final = 15
RESET_REQUIRED: Final = 16
VERSION_MISMATCH: Final = 18

# Mean a broken GPU whichever call they come from, even one that is only for show.
SICK: Final = frozenset({INSUFFICIENT_POWER, IRQ_ISSUE, GPU_IS_LOST, RESET_REQUIRED})

_IN_WORDS: Final = {
    UNINITIALIZED: "the NVIDIA driver library is not initialised",
    NO_PERMISSION: "this user has no permission to ask the NVIDIA driver about this GPU or what runs on it",
    INSUFFICIENT_POWER: "the GPU's power cables are not attached properly",
    DRIVER_NOT_LOADED: "the NVIDIA driver is not loaded",
    TIMEOUT: "the NVIDIA driver timed out",
    IRQ_ISSUE: "the kernel gets no interrupts from the GPU",
    LIBRARY_NOT_FOUND: "there is no NVIDIA driver library, libnvidia-ml.so.1",
    FUNCTION_NOT_FOUND: "the NVIDIA driver is too old: it has no function to tell",
    GPU_IS_LOST: "the GPU is lost: it has fallen off the bus or no longer answers the driver",
    RESET_REQUIRED: "the GPU must be reset before it can be used",
    VERSION_MISMATCH: "the NVIDIA driver was updated but the old kernel module is still loaded: reboot, or reload it",
}

# Only those that a broken or stuck GPU causes. Left out on purpose: what programs cause (13, 31, 43, 45, 68, 69…),
# what was repaired (63: row or page put aside, 94: memory error contained to the program that met it).
_XIDS: Final = {
    46: "GPU stopped processing",
    48: "uncorrectable memory error (double-bit ECC)",
    62: "internal micro-controller halted",
    64: "failing memory could not be put aside (row remapper or page retirement)",
    74: "NVLink error",
    79: "GPU has fallen off the bus",
    92: "high rate of single-bit memory errors (ECC)",
    95: "uncontained memory error (ECC)",
    119: "GPU system processor (GSP) does not answer",
    120: "GPU system processor (GSP) failed",
    140: "unrecovered memory error (ECC)",
    143: "GPU failed to initialise",
}


def error_in_words(code: int, text: str) -> str:
    """An NVML error for people.

    Args:
        code: the nvmlReturn_t.
        text: NVML's own words, used where there are no better ones.
    """
    words = _IN_WORDS.get(code)
    return words if words else f"the NVIDIA driver reports: {text} (NVML error {code})"


def xid_fault(xid: int) -> str:
    """What a broken GPU's Xid number means ("Xid 79: GPU has fallen off the bus"); empty if it says no such thing."""
    meaning = _XIDS.get(xid)
    return f"Xid {xid}: {meaning}" if meaning else ""


def ecc_fault(errors: int, accepted: int) -> str:
    """The fault that a count of uncorrectable memory errors is; empty for none beyond those already accepted."""
    if errors <= accepted:
        return ""
    counted = "1 uncorrectable memory error" if errors == 1 else f"{errors} uncorrectable memory errors"
    return f"{counted} (ECC) since the driver was loaded: reset the GPU or reboot"


def retirement_fault(pages_pending: bool, remap_failed: bool) -> str:
    """The fault that failing memory is. A row remap that waits for the next reset is none: the GPU stays usable."""
    if remap_failed:
        return "failing memory could not be remapped: have the GPU replaced"
    if pages_pending:
        return "failing memory pages wait to be retired: reset the GPU or reboot"
    return ""
