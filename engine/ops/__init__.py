"""What layers compute with, behind one contract: torch, C for CPUs, Triton for GPUs."""
