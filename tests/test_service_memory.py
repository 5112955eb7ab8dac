"""How the server's process keeps its memory."""

import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, sys, threading
from service import memory

if sys.argv[1] == "one":
    memory.one_arena()
libc = ctypes.CDLL(None)
together = threading.Barrier(8)

def allocate():
    together.wait()
    libc.malloc(1000)
    together.wait()

threads = [threading.Thread(target=allocate) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
libc.malloc_info.argtypes = (ctypes.c_int, ctypes.c_void_p)
libc.fdopen.restype = ctypes.c_void_p
libc.fflush.argtypes = (ctypes.c_void_p,)
out = libc.fdopen(1, b"w")
libc.malloc_info(0, out)
libc.fflush(out)
"""


def heaps(how: str) -> int:
    told = subprocess.run(
        [sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True
    )
    return told.stdout.count("<heap nr=")


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc_info")
def test_all_threads_share_one_heap():
    assert heaps("one") == 1
    assert heaps("as it comes") > 1
