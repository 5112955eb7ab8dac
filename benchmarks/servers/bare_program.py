"""Runs onnxruntime in a separate process, without a server.

    python -m benchmarks.servers.bare_program THREADS

reads one job per line as JSON (`graph`, `rpc`, `rows`, `dtype`, `seconds`), runs the graph for
`seconds`, and prints one line of JSON: number of runs, seconds, and latencies.
"""

import json
import os
import sys
import time

import numpy as np

from benchmarks.shapes import Shape, unit

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime

_OUTPUTS = {"encode": ["mean", "log_var"], "decode": ["image"]}


def main() -> None:
    """Runs jobs until standard input ends."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(sys.argv[1])
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    sessions: dict[str, onnxruntime.InferenceSession] = {}
    print("ready", flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        path, rpc = job["graph"], job["rpc"]
        if path not in sessions:
            sessions[path] = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
        array = Shape(rpc, job["rows"], job["dtype"], 1, 1).array()
        if rpc == "encode":
            # Converted before timing: conversion is a cost of the server, not of inference.
            array = (unit(array) if array.dtype == np.uint8 else array).reshape(-1, 1, 28, 28)
        name = sessions[path].get_inputs()[0].name
        latencies = []
        began = last = time.perf_counter()
        while last - began < job["seconds"]:
            sessions[path].run(_OUTPUTS[rpc], {name: array})
            now = time.perf_counter()
            latencies.append(now - last)
            last = now
        p50, p99 = np.percentile(latencies, (50, 99)) * 1000
        report = {"calls": len(latencies), "seconds": last - began, "p50_ms": p50, "p99_ms": p99}
        print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
