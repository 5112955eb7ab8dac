"""Tuning of glibc's allocator and of the garbage collector for a server process."""

import ctypes
import gc
import sys
from contextlib import suppress

# Parameters of mallopt (malloc.h).
_TRIM_THRESHOLD = -1
_MMAP_THRESHOLD = -3
_ARENA_MAX = -8
# Free memory at the top of the heap returns to the system beyond the first; allocations larger
# than the second are mapped pages of their own, which return when they are freed.
_TRIM_BYTES = 32 * 2**20
_MMAP_BYTES = 8 * 2**20
_GC_THRESHOLD = 50_000


def use_one_arena() -> None:
    """Makes all threads allocate from one malloc arena; to be called before any is started.

    By default glibc gives each thread an arena of its own, and memory freed in the middle of
    one does not return to the system: under a mixed load a server would grow for hours. Also
    raises the thresholds at which memory returns at all: by default the pages of one large
    reply go back, to be faulted in one by one for the next. Does nothing without glibc.
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(_ARENA_MAX, 1)
            mallopt(_MMAP_THRESHOLD, _MMAP_BYTES)
            mallopt(_TRIM_THRESHOLD, _TRIM_BYTES)


def freeze_startup_objects() -> None:
    """Exempts all present objects from garbage collection, and makes it run seldom.

    Calls leave hardly any reference cycles behind: at the default threshold of 700 objects,
    looking for them takes a tenth of a server's time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GC_THRESHOLD)
