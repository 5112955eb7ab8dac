"""How the process of a server keeps its memory."""

import ctypes
import gc
import sys
from contextlib import suppress

# glibc's M_TRIM_THRESHOLD, M_MMAP_THRESHOLD and M_ARENA_MAX (malloc.h).
_TRIM_THRESHOLD = -1
_MMAP_THRESHOLD = -3
_ARENA_MAX = -8
# What is freed at the end of the heap goes back to the system beyond so many bytes; what is
# larger than so many has pages of its own, which go back with it.
_KEPT_BYTES = 32 * 2**20
_OWN_PAGES_BYTES = 8 * 2**20
_GC_OBJECTS = 50_000


def one_heap() -> None:
    """Lets all threads take their memory from one heap; to be called before there are any.

    glibc gives each thread a heap of its own, and what a thread frees in the middle of it
    does not go back to the system: under a mixed load a server would grow for hours. And it
    gives back what one large reply took, to ask for it page by page for the next. Does
    nothing where there is no glibc.
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(_ARENA_MAX, 1)
            mallopt(_MMAP_THRESHOLD, _OWN_PAGES_BYTES)
            mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)


def keep() -> None:
    """Tells the garbage collector that what is there now stays.

    What calls make has hardly any cycles: to look for some at every 700th object takes a
    tenth of a server's time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GC_OBJECTS)
