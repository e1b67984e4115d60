"""Prompts that share a beginning and arrive together: one computes it, the others wait for that."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.stepper import BLOCK_TOKENS, Run, Stepper

from engine.sequence import Abandon, Complete, Mode, SequenceState
from protocol.blocks import block_hashes
from protocol.ids import BlockHash
from protocol.messages import Sampling
from protocol.readings import ScorePrompt

STEM = list(range(100, 140))
DEFERRED, PREFILLING = SequenceState.DEFERRED, SequenceState.PREFILLING


def num_computed(stepper: Stepper) -> int:
    """Prompt tokens in all launched steps."""
    chunks = [chunk for batch in stepper.runner.batches for chunk in batch]
    return sum(len(c.token_ids) for c in chunks if c.start < c.num_prompt)


def siblings(stepper: Stepper, num: int, *, num_shared: int, num_own: int = 3) -> list[Run]:
    stem = [i % 900 for i in range(num_shared)]
    return [stepper.submit([*stem, *[901 + i] * num_own], max_tokens=2, seed=i) for i in range(num)]


@pytest.mark.parametrize(
    ("token_budget", "depth"),
    [
        (512, 1), (2048, 2), (8192, 1),
        *(pytest.param(*more, marks=pytest.mark.long) for more in [(512, 2), (2048, 1), (8192, 2)]),
    ],
)  # fmt: skip
def test_sixteen_prompts_that_arrive_together_compute_what_they_share_once(
    token_budget: int, depth: int
) -> None:
    stepper = Stepper(
        depth=depth, num_blocks=2000, max_running=16, token_budget=token_budget,
        max_context_tokens=2048,
    )  # fmt: skip
    runs = siblings(stepper, 16, num_shared=1920, num_own=100)
    stepper.run()
    assert num_computed(stepper) == 1920 + 16 * 100
    assert all(run.outputs == run.expected(2) for run in runs)


def expected_tokens(prompts: Sequence[Sequence[int]]) -> int:
    """At most, when every block that several share is computed once; each last token is computed by
    whoever has it."""
    rows, num_own = set[BlockHash](), 0
    for prompt in prompts:
        reused = (len(prompt) - 1) // BLOCK_TOKENS * BLOCK_TOKENS
        rows.update(block_hashes(prompt[:reused], block_tokens=BLOCK_TOKENS, seed=BlockHash(b"")))
        num_own += len(prompt) - reused
    return len(rows) * BLOCK_TOKENS + num_own


prompts = st.builds(
    lambda stem, shared, own: [stem, *STEM[:shared], *own],
    st.integers(1, 2),
    st.integers(0, 40),
    st.lists(st.integers(1, 2), max_size=9),
)


@pytest.mark.long
@pytest.mark.parametrize("depth", [1, 2])
@given(
    arrivals=st.lists(st.tuples(prompts, st.integers(0, 3)), min_size=1, max_size=9),
    budget=st.sampled_from((11, 32, 400)),
    mode=st.sampled_from((Mode.LOCAL, Mode.HANDOVER)),
)
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
def test_whoever_arrives_whenever_no_block_is_computed_twice(
    depth: int, arrivals: list[tuple[list[int], int]], budget: int, mode: Mode
) -> None:
    stepper = Stepper(num_blocks=400, max_running=10, token_budget=budget, depth=depth)
    for prompt, num_steps in arrivals:
        stepper.submit(prompt, max_tokens=1, mode=mode)
        for _ in range(num_steps):
            stepper.step()
    stepper.run()
    assert num_computed(stepper) <= expected_tokens([prompt for prompt, _ in arrivals])
    for run in stepper.runs.values():
        assert run.outputs == run.expected(1)


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("num_steps", range(1, 7))
def test_when_the_first_is_aborted_the_others_go_on(depth: int, num_steps: int) -> None:
    stepper = Stepper(depth=depth, num_blocks=200)
    first, *others = siblings(stepper, 4, num_shared=40)
    for _ in range(num_steps):
        stepper.step()
    stepper.abort(first)
    stepper.run()
    assert first.verdicts == [Abandon()] and stepper.all_back
    assert all(run.outputs == run.expected(2) for run in others)
    assert num_computed(stepper) <= 40 + 4 * 3 + 8 * depth


@pytest.mark.parametrize("depth", [1, 2])
def test_when_the_first_fails_alone_the_others_go_on(depth: int) -> None:
    stepper = Stepper(depth=depth, num_blocks=200)
    first, *others = siblings(stepper, 3, num_shared=24)
    stepper.launch()
    stepper.fail()
    assert stepper.repeat(fails=True)
    stepper.run()
    assert len(first.verdicts) == 1 and not first.outputs
    assert all(run.outputs == run.expected(2) for run in others)


@pytest.mark.parametrize("depth", [1, 2])
def test_when_the_first_is_preempted_the_others_go_on(depth: int) -> None:
    """Decodes that need its blocks drive it out, again and again."""
    stepper = Stepper(depth=depth, num_blocks=16, max_running=4, token_budget=5)
    decoding = [stepper.submit([i] * 3, max_tokens=30) for i in (1, 2)]
    stepper.step()
    first, second = siblings(stepper, 2, num_shared=36)
    stepper.run()
    assert stepper.scheduler.num_preempted
    for run in (*decoding, first, second):
        assert run.outputs == run.expected(len(run.outputs)) and run.verdicts
        assert run.verdicts == [Complete("length")]


def test_who_shares_nothing_goes_past_those_that_wait() -> None:
    stepper = Stepper(num_blocks=200, token_budget=64, max_running=6)
    first, waits = siblings(stepper, 2, num_shared=20)
    later = [stepper.submit([i] * 4, max_tokens=1) for i in (5, 6)]
    batch = stepper.launch()
    assert [chunk.sequence for chunk in batch] == [r.sequence.id for r in (first, *later)]
    assert waits.sequence.state is DEFERRED


def test_a_seat_is_kept_for_who_waits() -> None:
    """Who came later starts as late as if the waiting one were running."""
    stepper = Stepper(num_blocks=200, max_running=2, token_budget=64)
    _, waits = siblings(stepper, 2, num_shared=20)
    later = stepper.submit([5] * 4, max_tokens=1)
    stepper.launch()
    assert (waits.sequence.state, later.sequence.state) == (DEFERRED, SequenceState.WAITING)
    stepper.complete()
    stepper.launch()
    assert waits.admissions == 1 and not later.admissions


def test_room_is_kept_for_who_waits() -> None:
    """Of 14 blocks the first takes 6, the second needs one of its own, and large takes 8."""
    stepper = Stepper(num_blocks=14, max_running=4, token_budget=64)
    _, waits = siblings(stepper, 2, num_shared=20)
    large = stepper.submit([5] * 32, max_tokens=1)
    stepper.launch()
    assert (waits.sequence.state, large.sequence.state) == (DEFERRED, SequenceState.WAITING)
    stepper.complete()
    stepper.run()
    assert large.outputs == large.expected(1) and stepper.scheduler.num_preempted == 0


def test_the_more_urgent_takes_what_is_kept() -> None:
    stepper = Stepper(num_blocks=200, max_running=2, token_budget=64, depth=2)
    _, waits = siblings(stepper, 2, num_shared=20)
    stepper.launch()
    urgent = stepper.submit([5] * 4, max_tokens=1, priority=-1)
    stepper.launch()
    assert urgent.admissions == 1 and waits.sequence.state is DEFERRED


def test_nobody_waits_for_the_less_urgent() -> None:
    """Which others may keep from being computed."""
    stepper = Stepper(num_blocks=200)
    slow = stepper.submit(STEM, priority=3)
    stepper.step()
    urgent = stepper.submit(STEM, priority=0)
    stepper.step()
    assert slow.sequence.state is PREFILLING and urgent.sequence.state is PREFILLING


@pytest.mark.parametrize("stranger", ["salt", "adapter"])
def test_strangers_do_not_wait_for_each_other(stranger: str) -> None:
    stepper = Stepper(num_blocks=200)
    stepper.submit(STEM, max_tokens=1)
    other = stepper.submit(STEM, max_tokens=1, **{stranger: "another"})  # type: ignore[arg-type]
    stepper.step()
    assert other.sequence.state is not DEFERRED
    stepper.run()
    assert num_computed(stepper) == 2 * len(STEM)


def test_who_wants_its_rows_read_computes_them_itself() -> None:
    stepper = Stepper(num_blocks=200, token_budget=64)
    stepper.submit(STEM, max_tokens=1)
    read = stepper.submit(STEM, max_tokens=1, reading=ScorePrompt(first=20))
    stepper.run()
    assert num_computed(stepper) == len(STEM) + len(STEM) - 16
    assert read.reads == list(range(19, len(STEM) - 1))


def test_two_groups_each_compute_their_own_beginning_once() -> None:
    stepper = Stepper(num_blocks=400, max_running=8, token_budget=200)
    for i in range(8):
        stepper.submit([i % 2, *STEM, 7, i], max_tokens=1)
    stepper.run()
    assert num_computed(stepper) == 2 * 40 + 8 * 3


def test_who_shares_more_with_a_second_one_waits_for_that_too() -> None:
    """a is computed; b shares 16 tokens with it, c 32 with b."""
    stepper = Stepper(num_blocks=400, max_running=8, token_budget=200)
    b = [*STEM[:16], *[7] * 24]
    for prompt in (STEM, b, [*b[:32], 8]):
        stepper.submit(prompt, max_tokens=1)
    stepper.run()
    assert num_computed(stepper) == 40 + 24 + 1


def test_who_waits_is_not_looked_at_until_all_that_it_shares_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A beginning is pulled for ten steps: each of the others is matched once before its end, and
    once after."""
    stepper = Stepper(num_blocks=200, token_budget=64, max_running=5)
    stepper.submit([5] * 9, max_tokens=20)
    first, *others = (
        stepper.submit([*STEM, i], max_tokens=1, pull_tokens=40) for i in range(4)
    )  # fmt: skip
    whole, matches = stepper.cache.match, list[int]()

    def match(*args: Any, **kwds: Any) -> list[int]:
        matches.append(1)
        return whole(*args, **kwds)

    monkeypatch.setattr(stepper.cache, "match", match)
    for _ in range(10):
        stepper.step()
    assert len(matches) == 1 + 1 + 3
    stepper.end_pull(first, num_tokens=stepper.pull(first))
    stepper.run()
    assert len(matches) == 1 + 1 + 3 + 3
    assert all(run.outputs == run.expected(1) for run in others)


def test_the_tokens_that_another_computes_are_nobodys_load_twice() -> None:
    stepper = Stepper(num_blocks=200, token_budget=64)
    siblings(stepper, 3, num_shared=40)
    stepper.launch()
    load = stepper.scheduler.load()
    assert (load.running, load.waiting, load.waiting_tokens) == (1, 2, 43 + 2 * 3)


def test_one_of_two_pulls_the_beginning_that_both_would() -> None:
    stepper = Stepper(num_blocks=200, token_budget=64)
    first, second = (stepper.submit([*STEM, i], max_tokens=1, pull_tokens=40) for i in (1, 2))
    stepper.step()
    assert first.sequence.state is SequenceState.FETCHING
    assert second.sequence.state is DEFERRED
    stepper.end_pull(first, num_tokens=stepper.pull(first))
    stepper.run()
    assert not second.pulled_into and num_computed(stepper) == 2
    assert second.outputs == second.expected(1)


def test_what_a_pull_did_not_bring_is_computed_by_one_of_them() -> None:
    stepper = Stepper(num_blocks=200, token_budget=64)
    first, second = (stepper.submit([*STEM, i], max_tokens=1, pull_tokens=40) for i in (1, 2))
    stepper.step()
    stepper.end_pull(first, num_tokens=stepper.pull(first, fraction=0.5))
    stepper.run()
    assert not second.pulled_into and num_computed(stepper) == 20 + 2


def test_nobody_waits_for_more_of_a_pull_than_it_would_pull_itself() -> None:
    stepper = Stepper(num_blocks=200, token_budget=64)
    stepper.submit([*STEM, 1], max_tokens=1, pull_tokens=40)
    short = stepper.submit([*STEM[:8], 2], max_tokens=1, pull_tokens=8)
    stepper.step()
    assert short.sequence.state is SequenceState.FETCHING


def test_a_remote_waits_for_nobody_that_computes_or_fetches() -> None:
    """Its KV is somewhere already, and of a fetch nothing is findable before its end."""
    stepper = Stepper(num_blocks=200)
    stepper.submit(STEM)
    remote = [stepper.submit(STEM, mode=Mode.REMOTE, seed=seed) for seed in (1, 2)]
    stepper.step()
    assert all(run.sequence.state is SequenceState.FETCHING for run in remote)


def test_in_windows_too_a_beginning_is_computed_once() -> None:
    stepper = Stepper(num_blocks=400, windows=(None, 10), token_budget=16, max_running=8)
    runs = siblings(stepper, 6, num_shared=40)
    stepper.run()
    assert num_computed(stepper) == 40 + 6 * 3
    assert all(run.outputs == run.expected(2) for run in runs)


def test_who_waits_can_be_aborted() -> None:
    stepper = Stepper(num_blocks=200, token_budget=64)
    first, waits = siblings(stepper, 2, num_shared=40)
    stepper.launch()
    assert waits.sequence.state is DEFERRED
    stepper.abort(waits)
    assert waits.freed
    stepper.complete()
    stepper.run()
    assert first.outputs == first.expected(2)


def test_of_equal_prompts_all_but_the_last_block_is_computed_once() -> None:
    stepper = Stepper(num_blocks=200, token_budget=64)
    for seed in range(3):
        stepper.submit(STEM, sampling=Sampling(seed=seed, max_tokens=2, presence_penalty=1.0))
    stepper.run()
    assert num_computed(stepper) == 40 + 2 * 4
