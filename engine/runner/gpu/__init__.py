"""Steps on a device: uploads, CUDA graphs, tokens fed back, the size of its pool."""
