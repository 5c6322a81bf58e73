"""The memory that this machine or container has left."""

import os
from pathlib import Path


def free_memory() -> int:
    """Return the free bytes of memory of this machine or container."""
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for line in _lines("/proc/meminfo"):  # includes reclaimable page cache
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024
    limit, used, kinds = (_lines(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current", "stat"))
    if limit and used and limit[0] != "max":
        cached = sum(int(line.split()[1]) for line in kinds if line.startswith("inactive_file "))
        available = min(available, int(limit[0]) - int(used[0]) + cached)
    return available


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="ascii").splitlines()
    except OSError:
        return []
