"""C kernels: built once per machine, or brought by an image for kinds of processors; and loaded."""
