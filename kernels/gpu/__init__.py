"""The ops of a pass on a GPU, in Triton: one file an op, each with its plain PyTorch reference."""
