"""The Open Inference Protocol, which clients of Triton and KServe speak, over the same models."""
