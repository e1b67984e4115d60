from functools import partial

from msgspec.structs import replace
from support.words import beat, registration

from protocol.ids import RequestId
from protocol.messages import Blocks
from router.placement.place import Placement, place
from router.workers.worker import ALONE_S, BEAT_LAG_S, KnownWorker

R = RequestId("r")


def worker(name: str = "decode-0", *, free: int = 8) -> KnownWorker:
    made = KnownWorker(registration(name))
    blocks = Blocks(total=8, free=free, cached=8 - free, leased=0)
    made.note_beat(replace(beat(), blocks=blocks), now=0.0)
    return made


def load(made: KnownWorker) -> tuple[int, int]:
    candidate = made.candidate(num_cached_tokens=0)
    return candidate.num_waiting_tokens, candidate.num_running


def test_what_was_sent_counts_as_load_until_a_beat_can_have_counted_it() -> None:
    made = worker()
    made.note_sent(R, 100, first=0, suspect=False, now=1.0)
    assert load(made) == (100, 1)
    made.note_beat(beat(), now=1.0 + BEAT_LAG_S / 2)
    assert load(made) == (100, 1)
    made.note_beat(beat(), now=1.0 + BEAT_LAG_S)
    assert load(made) == (0, 0)


def test_blocks_that_keep_a_prefix_for_nobody_are_free_to_take() -> None:
    made = worker()
    made.note_beat(replace(beat(), blocks=Blocks(total=8, free=1, cached=5, leased=2)), now=1.0)
    assert made.candidate(num_cached_tokens=0).num_free_blocks == 6


def test_a_token_of_a_model_with_windows_takes_a_block_of_every_group() -> None:
    fields = registration("decode-0")
    layout = replace(fields.layout, num_groups=4)
    made = KnownWorker(replace(fields, layout=layout, max_context_tokens=8))
    made.note_beat(beat(), now=0.0)
    candidate = made.candidate(num_cached_tokens=0)
    assert (candidate.num_blocks, candidate.num_free_blocks) == (2, 2)
    assert candidate.token_bytes == 4 * fields.layout.token_bytes


def test_a_worker_that_takes_longer_sequences_than_its_pool_gets_them() -> None:
    """Windows let it go on without the blocks they have left behind."""
    made = KnownWorker(replace(registration("decode-0"), num_blocks=4, max_context_tokens=400))
    made.note_beat(beat(), now=0.0)
    placement = place([made.candidate(num_cached_tokens=0)], num_tokens=300, max_output_tokens=4)
    assert isinstance(placement, Placement)


def test_a_warm_pool_attracts_the_prompt_it_has() -> None:
    """After some time every pool is warm: no block of it is empty."""
    warm, fresh = worker("decode-1", free=0), worker("decode-0", free=8)
    candidates = [
        warm.candidate(num_cached_tokens=20),
        fresh.candidate(num_cached_tokens=0),
    ]
    placement = place(candidates, num_tokens=24, max_output_tokens=4)
    assert isinstance(placement, Placement) and placement.decode == "decode-1"


def test_a_request_that_ended_between_two_beats_is_no_load() -> None:
    made = worker()
    made.note_sent(R, 100, first=0, suspect=False, now=1.0)
    made.note_ended(R)
    assert load(made) == (0, 0)


def test_a_request_is_unheard_until_a_token_comes_that_only_this_worker_can_say() -> None:
    """A decode worker repeats the token that the prefill worker sampled."""
    made = worker()
    made.note_sent(R, 0, first=1, suspect=False, now=1.0)
    made.note_heard(RequestId("other"), 5)
    made.note_heard(R, 0)
    assert set(made.unheard) == {R} and not made.is_empty
    made.note_heard(R, 1)
    assert not made.unheard


def test_a_suspect_is_joined_by_nobody_until_it_is_heard_has_ended_or_takes_too_long() -> None:
    made = worker()
    for over in (partial(made.note_heard, R, 0), partial(made.note_ended, R)):
        made.note_sent(R, 100, first=0, suspect=True, now=1.0)
        assert made.is_held(now=1.0 + ALONE_S / 2)
        assert not made.is_held(now=1.0 + ALONE_S)
        over()
        assert not made.is_held(now=1.0)
