"""KV pools on a GPU, and all that their data planes need of a device and of NCCL.

`memory` is the pool; `driver` and `collectives` say what a device and a pair of ranks can do;
`cuda` and `libnccl` are the real ones, `fake` and `fake_collectives` stand for them without a GPU
and pass the same contract suites. Only `cuda` and `fake` know torch: whoever makes a pool picks
one, and a process with host pools loads neither.
"""
