"""C kernels for CPUs, built by the system's compiler on first use."""
