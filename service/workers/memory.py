"""Tuning of glibc's allocator and of the garbage collector for a server process."""

import ctypes
import gc
import sys
from contextlib import suppress

# Parameters of mallopt (malloc.h).
_TRIM_THRESHOLD = -1
_MMAP_THRESHOLD = -3
_ARENA_MAX = -8
# Free memory at the top of the heap beyond _TRIM_BYTES is returned to the system. Allocations
# larger than _MMAP_BYTES are mapped separately, and returned when they are freed.
_TRIM_BYTES = 32 * 2**20
_MMAP_BYTES = 8 * 2**20
# Number of new objects that starts a garbage collection.
_GC_THRESHOLD = 50_000


def use_one_arena() -> None:
    """Makes all threads allocate from one malloc arena; call it before any thread is started.

    By default glibc gives each thread its own arena, and memory freed in the middle of an arena
    is not returned to the system: under a mixed load a server would grow for hours. Also raises
    the thresholds above which freed memory is returned: by default the pages of a large reply
    are returned, only to be faulted in one by one for the next. Does nothing without glibc.
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(_ARENA_MAX, 1)
            mallopt(_MMAP_THRESHOLD, _MMAP_BYTES)
            mallopt(_TRIM_THRESHOLD, _TRIM_BYTES)


def freeze_startup_objects() -> None:
    """Exempts all existing objects from garbage collection, and makes collections rare.

    Calls leave hardly any reference cycles behind, yet at the default threshold of 700 objects
    the search for them takes a tenth of a server's time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GC_THRESHOLD)
