"""A device and a pair of ranks as the planes need them: contracts, CUDA's driver and NCCL."""
