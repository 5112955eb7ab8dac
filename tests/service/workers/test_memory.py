"""Allocator and garbage collector of the server's process."""

import signal
import subprocess
import sys

import grpc
import numpy as np
import pytest

from latentserve.client import Client
from latentserve.v1 import latent_service_pb2 as pb
from tests.support.processes import Server
from tests.support.stubs import stub_of
from tests.support.tiny import write_tiny
from tests.support.waiting import wait_until

PROGRAM = """
import ctypes, sys, threading
from service.workers import memory

if sys.argv[1] == "one":
    memory.use_one_arena()
libc = ctypes.CDLL(None)
barrier = threading.Barrier(8)

def allocate():
    barrier.wait()
    libc.malloc(1000)
    barrier.wait()

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


def arenas(how: str) -> int:
    info = subprocess.run(
        [sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True
    )
    return info.stdout.count("<heap nr=")


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc_info")
def test_all_threads_share_one_malloc_arena():
    assert arenas("one") == 1
    assert arenas("default") > 1


LARGE = """
import resource, sys
import numpy as np
from service.workers import memory

if sys.argv[1] == "one":
    memory.use_one_arena()

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    replies = [np.ones(3 * 2**20, np.uint8) for _ in range(8)]
    del replies
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
faults()
print(faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_the_memory_of_large_replies_is_reused_without_page_faults():
    def faults(how: str) -> int:
        command = [sys.executable, "-c", LARGE, how]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert faults("one") < 100
    assert faults("default") > 1000


def test_calls_leave_no_reference_cycles(tmp_path):
    """The garbage collector runs seldom, and a cycle could keep whole messages alive."""
    write_tiny(tmp_path / "models" / "one")
    with Server(
        tmp_path / "models", tmp_path / "log", "--http-port", "0", program="tests.support.garbage"
    ) as server:
        server.wait_until_serving()

        def garbage():
            server.process.send_signal(signal.SIGUSR1)
            return server.process.stdout.readline().strip()

        with Client(server.target) as client, stub_of(server.target) as stub:
            client.info()
            server.samples()
            garbage()
            for _ in range(3):
                images = client.sample(40, seed=1)
                list(client.encode_stream(iter(np.array_split(images, 8))))
                list(client.sample_stream(1000, seed=1, chunk_rows=100))
                cut = stub.SampleStream(
                    pb.SampleStreamRequest(request=pb.SampleRequest(count=10**6), chunk_rows=10)
                )
                next(cut)
                cut.cancel()
                with pytest.raises(grpc.RpcError):
                    stub.Sample(pb.SampleRequest(count=4000), timeout=0.001)
                with pytest.raises(grpc.RpcError):
                    stub.Encode(pb.EncodeRequest())
            # All calls have ended, on the server's side too.
            wait_until(lambda: server.metric("latentserve_queue_rows") == 0)
            assert garbage() == "[]"
