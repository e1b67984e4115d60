import pytest
from support.block_books import cache_of, sequence_of

from engine.kvcache.prefix_cache import PrefixCache
from engine.limits import EngineLimits
from engine.scheduling.admission import SequenceAdmission
from engine.scheduling.sequence_table import SequenceTable
from engine.sequence import Complete, Mode, Sequence, SequenceState


class Queue:
    """Sequences that wait for admission."""

    def __init__(self, cache: PrefixCache, *, max_running: int = 2, max_waiting: int = 1) -> None:
        self.cache, self.table = cache, SequenceTable(cache)
        limits = EngineLimits(
            max_running=max_running, max_waiting=max_waiting, token_budget=8, max_context_tokens=40
        )
        self.admission = SequenceAdmission(cache=cache, limits=limits, table=self.table)

    def add(self, name: str, num_tokens: int, *, mode: Mode = Mode.LOCAL) -> Sequence:
        """Equal sizes have equal prompts."""
        prompt = [100 * num_tokens + i for i in range(num_tokens)]
        sequence = sequence_of(self.cache, name, prompt, mode=mode)
        self.table.add(sequence)
        return sequence

    def admit(self, budget: int = 8) -> Sequence | None:
        return self.admission.admit_head(budget, now=3.0)


def test_the_head_of_the_queue_gets_blocks_for_all_its_tokens() -> None:
    queue = Queue(cache_of(8))
    head = queue.add("a", 9)
    assert queue.admit() is head
    assert (head.state, head.admitted_at) == (SequenceState.PREFILLING, 3.0)
    assert len(head.block_table.blocks) == 3
    assert queue.admit() is None


def test_nobody_overtakes_a_head_that_does_not_fit() -> None:
    queue = Queue(cache_of(4), max_running=4)
    runs, large = queue.add("a", 8), queue.add("b", 16)
    queue.add("c", 4)
    assert queue.admit() is runs
    assert queue.admit() is None and queue.admit() is None
    queue.table.finish(runs, Complete("stop"))
    assert queue.admit() is large


def test_as_many_run_as_the_limit_says() -> None:
    queue = Queue(cache_of(16))
    for name in "abc":
        queue.add(name, 4)
    assert queue.admit() and queue.admit() and not queue.admit()


def test_without_budget_only_a_fetch_starts() -> None:
    queue = Queue(cache_of(8))
    local = queue.add("a", 4)
    assert queue.admit(budget=0) is None
    assert queue.admit() is local
    fetched = queue.add("b", 5, mode=Mode.REMOTE)
    assert queue.admit(budget=0) is fetched
    assert fetched.state is SequenceState.FETCHING


@pytest.mark.parametrize(("mode", "num_cached"), [(Mode.LOCAL, 4), (Mode.REMOTE, 8)])
def test_a_cached_prompt_is_not_computed_again_but_for_a_token_unless_a_fetch_brings_the_next(
    mode: Mode, num_cached: int
) -> None:
    queue = Queue(cache_of(8))
    first = queue.add("a", 8)
    assert queue.admit() is first
    first.block_table.seal(first.tokens, 8, in_flight=False)
    queue.table.finish(first, Complete("stop"))
    again = queue.add("b", 8, mode=mode)
    assert queue.admit() is again
    assert again.num_cached == again.num_computed == num_cached
    queue.cache.check()


def test_the_queue_is_full_of_those_that_could_not_start_at_once() -> None:
    """Two have seats, one may wait."""
    queue = Queue(cache_of(16))
    for name in "abc":
        assert not queue.admission.is_queue_full()
        queue.add(name, 4)
    assert queue.admission.is_queue_full()


def test_whoever_has_a_seat_and_no_blocks_counts_as_waiting() -> None:
    queue = Queue(cache_of(4))
    queue.add("a", 12)
    assert not queue.admission.is_queue_full()
    queue.add("b", 12)
    assert queue.admission.is_queue_full()


def test_a_context_is_as_long_as_the_limit_or_the_pool() -> None:
    assert Queue(cache_of(16)).admission.max_context_tokens() == 40
    assert Queue(cache_of(6)).admission.max_context_tokens() == 24


def test_the_more_urgent_goes_first_and_equals_as_they_came() -> None:
    queue = Queue(cache_of(16), max_running=7, max_waiting=9)
    for arrival, (name, priority) in enumerate([("a", 0), ("b", 5), ("c", -1), ("d", 0)]):
        waiting = sequence_of(queue.cache, name, [arrival], mode=Mode.LOCAL)
        waiting.priority, waiting.arrival = priority, arrival
        queue.table.add(waiting)
    queue.table.check()
    assert [str(one.id) for one in iter(queue.admit, None) if one] == ["c", "a", "d", "b"]


def test_who_is_preempted_comes_back_to_its_place_among_the_waiting() -> None:
    queue = Queue(cache_of(16), max_running=1, max_waiting=9)
    runs = queue.add("runs", 4)
    assert queue.admit() is runs
    for arrival, (name, priority) in enumerate([("soon", -1), ("late", 0), ("last", 1)], 5):
        waiting = sequence_of(queue.cache, name, [arrival], mode=Mode.LOCAL)
        waiting.priority, waiting.arrival = priority, arrival
        queue.table.add(waiting)
    queue.table.preempt(runs)
    assert [str(name) for name in queue.table.waiting] == ["soon", "runs", "late", "last"]
    queue.table.check()
