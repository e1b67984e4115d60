"""NCCL between two ranks: one communicator a pair of workers."""
