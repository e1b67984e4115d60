"""Which batches are decode steps, and which sizes of them are captured."""

from support.forwards import chunk

from engine.runner.gpu.arrays import (
    is_decode,
)
from engine.runner.gpu.graphs import decode_sizes, size_for


def test_decode_steps_are_captured_for_small_batches_multiples_of_eight_and_the_largest() -> None:
    assert decode_sizes(1) == (1,)
    assert decode_sizes(6) == (1, 2, 4, 6)
    assert decode_sizes(33) == (1, 2, 4, 8, 16, 24, 32, 33)
    assert len(decode_sizes(256)) == 35


def test_a_batch_takes_the_smallest_size_that_holds_it() -> None:
    sizes = decode_sizes(24)
    assert [size_for(rows, sizes) for rows in (1, 3, 8, 9, 24)] == [1, 4, 8, 16, 24]
    assert size_for(25, sizes) is None and size_for(1, ()) is None


def test_only_a_step_whose_every_chunk_is_one_token_that_samples_is_a_decode() -> None:
    one = chunk([3], table=[0])
    assert is_decode([one, one])
    assert not is_decode([one, chunk([3, 4], table=[0])])
    assert not is_decode([one, chunk([3], table=[0], sampling=None)])
