"""The Open Inference Protocol by HTTP, for clients of Triton and KServe: /v2."""
