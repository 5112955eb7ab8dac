"""How the process of a server keeps its memory."""

import ctypes
import gc
import sys
from contextlib import suppress

# glibc's M_ARENA_MAX (malloc.h).
_ARENA_MAX = -8
_GC_OBJECTS = 50_000


def one_arena() -> None:
    """Lets all threads take their memory from one heap; to be called before there are any.

    glibc gives each thread a heap of its own, and what a thread frees in the middle of it
    does not go back to the system: under a mixed load a server would grow for hours. Does
    nothing where there is no glibc.
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).mallopt(_ARENA_MAX, 1)


def keep() -> None:
    """Tells the garbage collector that what is there now stays.

    What calls make has hardly any cycles: to look for some at every 700th object takes a
    tenth of a server's time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GC_OBJECTS)
