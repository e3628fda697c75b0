"""How a process that runs networks keeps its memory: freed blocks stay, so that the next layer need not fault them in.

Every layer of a network allocates and frees tens of megabytes. glibc maps such blocks afresh each time and the kernel
clears every page of them again: a third of the time of a segmentation on processors measured (15.5 s against 9.5 s).
mallopt(3), malloc_trim(3). Other C libraries than glibc are left as they are.
"""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
NEVER_BYTES = 2**31 - 1


def keep_freed_memory() -> bool:
    """Serve large blocks from the heap too and give none back unasked; whether the C library took the setting."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, NEVER_BYTES))


def give_back_freed_memory() -> None:
    """Between two studies the memory belongs to others."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
