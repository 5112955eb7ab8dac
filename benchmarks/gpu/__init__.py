"""What is promised on a GPU, measured on one: `benchmarks/gpu.sh`."""
