from support.block_books import cache_of, sequence_of

from engine.batch import PENDING
from engine.kvcache.prefix_cache import PrefixCache
from engine.scheduling.in_flight import InFlightSteps
from engine.sequence import Sequence

PROMPT = list(range(50, 58))


def started(cache: PrefixCache, name: str) -> Sequence:
    """With blocks for its prompt, nothing of it computed."""
    sequence = sequence_of(cache, name, PROMPT)
    sequence.block_table.fill((), [True] * 2, promise=0)
    return sequence


def compute(steps: InFlightSteps) -> None:
    """The oldest step is over, and what it computed is sealed."""
    for sequence, _, stop in steps.pop_oldest_step():
        sequence.in_flight -= 1
        sequence.num_computed = stop
        steps.seal_computed(sequence)


def test_chunks_go_on_where_the_last_launched_one_ended_and_the_last_is_sampled() -> None:
    cache = cache_of(4)
    steps, sequence = InFlightSteps(cache), started(cache, "a")
    steps.begin_step()
    first = steps.add_chunk(sequence, 5)
    steps.begin_step()
    second = steps.add_chunk(sequence, 5)
    assert (list(first.token_ids), first.start, first.sampling) == (PROMPT[:5], 0, None)
    assert (list(second.token_ids), second.start) == (PROMPT[5:], 5)
    assert second.sampling is sequence.sampling
    assert (sequence.num_launched, sequence.in_flight, len(steps)) == (8, 2, 2)


def test_a_token_that_a_launched_step_samples_has_a_stand_in() -> None:
    cache = cache_of(4)
    steps, sequence = InFlightSteps(cache), started(cache, "a")
    steps.begin_step()
    assert steps.add_chunk(sequence, 8).pending == 0
    steps.begin_step()
    ahead = steps.add_chunk(sequence, 8)
    assert (tuple(ahead.token_ids), ahead.start, ahead.pending) == ((PENDING,), 8, 1)


def test_steps_end_oldest_first_and_a_failed_launch_takes_back_the_newest() -> None:
    cache = cache_of(8)
    steps = InFlightSteps(cache)
    one, other = started(cache, "a"), started(cache, "b")
    for sequence in (one, other):
        steps.begin_step()
        steps.add_chunk(sequence, 8)
    assert steps.pop_newest_step() == [(other, 0, 8)]
    assert steps.pop_oldest_step() == [(one, 0, 8)]
    assert len(steps) == 0


def test_a_displaced_block_is_held_until_no_step_reads_it() -> None:
    """Two compute the same at once: the later one takes the blocks of the earlier, while a step
    that reads its own is launched."""
    cache = cache_of(8)
    steps = InFlightSteps(cache)
    one, other = started(cache, "a"), started(cache, "b")
    own = list(other.block_table.blocks)
    steps.begin_step()
    steps.add_chunk(one, 8)
    steps.add_chunk(other, 8)
    steps.begin_step()
    steps.add_chunk(other, 1)
    compute(steps)
    assert other.block_table.blocks == one.block_table.blocks
    assert steps.displaced == own
    assert [cache.blocks.refs(block) for block in own] == [1, 1]
    steps.pop_oldest_step()
    assert steps.displaced == []
    assert [cache.blocks.refs(block) for block in own] == [0, 0]
    cache.check()


def test_displaced_blocks_stay_with_the_steps_before_one_that_was_never_launched() -> None:
    cache = cache_of(8)
    steps = InFlightSteps(cache)
    one, other = started(cache, "a"), started(cache, "b")
    own = list(other.block_table.blocks)
    steps.begin_step()
    steps.add_chunk(one, 8)
    steps.add_chunk(other, 8)
    for _ in range(2):
        steps.begin_step()
        steps.add_chunk(other, 1)
    compute(steps)
    steps.pop_newest_step()
    assert steps.displaced == own
    steps.pop_newest_step()
    assert steps.displaced == [] and cache.blocks.refs(own[0]) == 0
