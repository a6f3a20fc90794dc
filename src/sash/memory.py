"""How much memory there is. Needs no torch."""

from __future__ import annotations

import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
"""Where a container's limits stand (version 2 of control groups, as seen from inside the container)."""


def available_memory() -> int | None:
    """Bytes that a new allocation can have without swapping; None where the system does not say.

    In a container that is the smaller of what the machine has available and what is left of the container's limit.
    """
    known = [size for size in (_machine(), _container()) if size is not None]
    return min(known, default=None)


def _machine() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def _container() -> int | None:
    """What is left of the container's limit; pages of files that can be dropped count as free."""
    try:
        limit = (CGROUP / "memory.max").read_text(encoding="ascii").strip()
        if limit == "max":
            return None
        used = int((CGROUP / "memory.current").read_text(encoding="ascii"))
        for line in (CGROUP / "memory.stat").read_text(encoding="ascii").splitlines():
            name, _, size = line.partition(" ")
            if name == "inactive_file":
                used -= int(size)
        return max(0, int(limit) - used)
    except (OSError, ValueError):
        return None
