#!/usr/bin/env bash
# Measures on a machine with an NVIDIA GPU what this project promises there, within 8 minutes.
#
#     benchmarks/gpu.sh                       # writes benchmarks/.cache/gpu.json, prints a table
#     benchmarks/gpu.sh --out h200.json --parts parity,speed
#     benchmarks/gpu.sh --device cpu --quick  # tries the script where there is no GPU
#
# Options are those of `python -m benchmarks.gpu`; paths are taken from the checkout's root. PYTHON
# names a Python that has all that is needed, or one to make an environment with, in
# benchmarks/.envs/gpu (default: python3.11). TORCH_INDEX is a package index to install torch from.
# LATENTSERVE_TAEF2 names the folder of TAEF2's weights.
set -euo pipefail
began=$SECONDS
cd "$(dirname "$0")/.."
python=${PYTHON:-python3.11}
environment=benchmarks/.envs/gpu
device=cuda
previous=
for argument in "$@"; do
    if [[ $previous == --device ]]; then device=$argument; fi
    if [[ $argument == --device=* ]]; then device=${argument#--device=}; fi
    previous=$argument
done

# Whether a Python has what the parts import, and an onnxruntime for the device.
has_all() {
    "$1" - "${device%%:*}" >/dev/null 2>&1 <<'EOF'
import importlib.util
import sys

import onnxruntime

names = ("av", "diffusers", "grpc_health", "hpack", "onnx", "onnxscript", "pydantic", "torch")
assert all(map(importlib.util.find_spec, names))
assert f"{sys.argv[1].upper()}ExecutionProvider" in onnxruntime.get_available_providers()
EOF
}

# The two builds of onnxruntime exclude each other, and the newest one with CUDA may be older than
# that in constraints.txt, so it replaces what the extra has brought.
install() {
    "$python" -m venv "$environment"
    local pip=("$environment/bin/python" -m pip --disable-pip-version-check)
    "${pip[@]}" install --quiet --no-deps ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} \
        --constraint constraints.txt torch
    "${pip[@]}" install --quiet --constraint constraints.txt --editable '.[import]'
    "${pip[@]}" uninstall --quiet --yes onnxruntime
    "${pip[@]}" install --quiet --prefer-binary 'onnxruntime-gpu[cuda,cudnn]'
}

if ! has_all "$python"; then
    if ! has_all "$environment/bin/python"; then
        echo "installing into $environment" >&2
        rm -rf "$environment"
        install
        echo "installed in $((SECONDS - began)) s; the parts have what is left of 460 s" >&2
    fi
    python=$environment/bin/python
fi

# onnxruntime finds CUDA's libraries of the system by itself, but not those that pip has installed.
libraries=$("$python" -c '
import sysconfig
from pathlib import Path
found = Path(sysconfig.get_path("purelib"), "nvidia").glob("*/lib")
print(":".join(map(str, sorted(found))))')
export LD_LIBRARY_PATH=$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
exec "$python" -m benchmarks.gpu --seconds "$((460 - SECONDS + began))" "$@"
