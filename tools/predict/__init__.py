"""What a step on a GPU should take, part by part, from compiled kernels and the chip's limits."""
