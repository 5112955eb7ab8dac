"""What ModelInfer of the Open Inference Protocol costs this server, beside Encode and Decode.

    python -m benchmarks.inference --pairs 9 --shapes encode-1,decode-1

Two processes of this checkout serve the same bundle; one is sent the native calls, the other the
requests that tritonclient makes. Compares server CPU time per call, in pairs as
`benchmarks.against` does.
"""

import argparse
import sys

from benchmarks import h2load
from benchmarks.against import add_options, compare
from benchmarks.machine import machine
from benchmarks.servers.inference import inference_call
from benchmarks.servers.ours import Ours
from benchmarks.servers.server import Call
from benchmarks.shapes import Shape, named
from service.api.inference import inference_service_pb2 as pb


class OverInference(Ours):
    """`latentserve serve`, called by the Open Inference Protocol."""

    def call(self, shape: Shape) -> Call:
        """Builds the request for a shape."""
        call = inference_call(shape, f"dense.{shape.rpc}")
        if shape.rpc == "encode" or shape.dtype == "float32":
            return call
        request = pb.ModelInferRequest.FromString(call.message)
        request.parameters["format"].string_param = shape.dtype
        return Call(call.method, request.SerializeToString(), call.read)


def main(arguments: list[str] | None = None) -> int:
    """Entry point; see the module docstring."""
    options = _parser().parse_args(arguments)
    if not h2load.available():
        print("h2load: not found, wanted Debian's package nghttp2-client", file=sys.stderr)
        return 2
    native, inference = Ours("native"), OverInference("inference")
    print(machine(), flush=True)
    try:
        native.start()
        inference.start()
        for shape in named(options.shapes):
            print(compare(native, inference, shape, options.pairs, options.seconds), flush=True)
    finally:
        native.stop()
        inference.stop()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.inference", description=(__doc__ or "").partition("\n")[0]
    )
    add_options(parser, ["encode-1-", "decode-1-"], "all with one image")
    return parser


if __name__ == "__main__":
    sys.exit(main())
