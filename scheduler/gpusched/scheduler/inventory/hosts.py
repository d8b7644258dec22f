"""What the host of the GPUs has besides them: cores and memory."""

from __future__ import annotations

import os
import re
from pathlib import Path

_TOTAL = re.compile(r"^MemTotal:\s+(\d+) kB$", re.MULTILINE)
_MEMINFO = Path("/proc/meminfo")
#: What a simulated node has for each of its GPUs.
SIMULATED_CPUS = 8
SIMULATED_MEMORY_BYTES = 64 * 1024**3


def this_host(meminfo: Path = _MEMINFO) -> tuple[int, int]:
    """Cores of this machine, and bytes of its memory; 0 where it does not tell."""
    try:
        found = _TOTAL.search(meminfo.read_text())
    except OSError:
        found = None
    return os.cpu_count() or 0, int(found[1]) * 1024 if found else 0
