"""`latentserve serve` in a process that breaks its own CUDA context at a line on standard input.

    python -m benchmarks.gpu.lost_context --device cuda

A kernel of one instruction, `trap`, fails in the context that onnxruntime computes in, as one that
reads memory it does not have. After that every call of CUDA in this process fails, which only its
end helps. Other processes, and the card itself, are not touched; the driver logs an Xid error.
"""

import ctypes
import sys
import threading

# For any card from Turing on: the driver compiles it for the one that is there.
_PTX = b""".version 6.3
.target sm_75
.address_size 64
.visible .entry broken() { trap; }
"""


class CudaError(Exception):
    """A function of CUDA's driver failed."""


def break_context(index: int) -> None:
    """Breaks the context that CUDA's runtime uses for a card in this process.

    Args:
        index: Index of the card.

    Raises:
        CudaError: It could not be done.
        OSError: There is no driver.
    """
    cuda = ctypes.CDLL("libcuda.so.1")

    def call(name: str, *arguments: object) -> None:
        status = getattr(cuda, name)(*arguments)
        if status:
            raise CudaError(f"{name}: CUDA error {status}")

    device, context = ctypes.c_int(), ctypes.c_void_p()
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    call("cuInit", 0)
    call("cuDeviceGet", ctypes.byref(device), index)
    call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    call("cuCtxSetCurrent", context)
    call("cuModuleLoadData", ctypes.byref(module), _PTX)
    call("cuModuleGetFunction", ctypes.byref(function), module, b"broken")
    # One thread; no shared memory, stream, parameters or further options.
    call("cuLaunchKernel", function, 1, 1, 1, 1, 1, 1, 0, None, None, None)
    if not cuda.cuCtxSynchronize():
        raise CudaError("the kernel ran to its end")


def _break_at_a_line() -> None:
    index = sys.stdin.readline().strip()
    if not index:
        return
    try:
        break_context(int(index))
        print("context broken", file=sys.stderr, flush=True)
    except (CudaError, OSError) as error:
        print(f"context not broken: {error}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    from service.cli import main

    threading.Thread(target=_break_at_a_line, daemon=True).start()
    sys.exit(main(sys.argv[1:]))
