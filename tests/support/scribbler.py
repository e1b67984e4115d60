"""Copies by a job whose other side writes anything into it: nothing outside the pools is touched.

A part of `support.transfer_process`, so that a fault in C ends a child and not the tests.
"""

import random

import numpy as np
from numpy.typing import NDArray
from support.nursery import Words

from kvtransfer.memory.host_pool import BlockMemory
from kvtransfer.transports.shm.copy_job import MAX_RANGES, CopyJob

ROUNDS = 3_000
NUM_BLOCKS, BLOCK_BYTES = 8, 256
_COUNTERS = 16
"""Before the arrays: number, stop, inside, cursor, done, pieces, batch, streaming, and room."""
_ARRAYS = tuple(_COUNTERS + n * MAX_RANGES for n in range(4))
"""Where they begin: target offsets, source offsets, sizes, starts."""
EDGES = (0, 1, -1, 63, 64, 256, NUM_BLOCKS * BLOCK_BYTES, 1 << 31, -(1 << 63), (1 << 63) - 1)


def be_scribbler(words: Words, arguments: list[str]) -> None:
    """`seed`: says "unharmed" when all rounds were refused or stayed inside."""
    chance = random.Random(arguments[0])
    job = CopyJob.create()
    if job is None:
        words.say("unharmed")  # without the C kernels there are no jobs
        return
    memory = BlockMemory.create(num_blocks=NUM_BLOCKS, block_bytes=BLOCK_BYTES)
    source = BlockMemory.create(num_blocks=NUM_BLOCKS, block_bytes=BLOCK_BYTES)
    scribbled = job.mapped.view(np.int64)
    told = [*range(_COUNTERS), *(at + i for at in _ARRAYS for i in range(NUM_BLOCKS + 1))]
    num_done = 0
    for _ in range(ROUNDS):
        _tell_the_truth(scribbled)
        for _ in range(chance.choice((0, 1, 1, 2, 8))):
            scribbled[chance.choice(told)] = chance.choice(EDGES)
        try:
            num_done += job.copy_pieces(1, target=memory.span, source=source.span)
        except ValueError:
            continue
    words.say("unharmed" if num_done else "nothing was ever copied")


def _tell_the_truth(job: NDArray[np.int64]) -> None:
    """A job, number 1, of all blocks, one range each."""
    job[:_COUNTERS] = 0
    job[0], job[5], job[6] = 1, NUM_BLOCKS, 1
    targets, sources, sizes, starts = _ARRAYS
    for at in (targets, sources):
        job[at : at + NUM_BLOCKS] = np.arange(NUM_BLOCKS) * BLOCK_BYTES
    job[sizes : sizes + NUM_BLOCKS] = BLOCK_BYTES
    job[starts : starts + NUM_BLOCKS + 1] = np.arange(NUM_BLOCKS + 1)
