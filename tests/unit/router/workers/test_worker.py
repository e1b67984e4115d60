from functools import partial

from msgspec.structs import replace
from support.words import beat, registration

from protocol.ids import RequestId
from protocol.messages import Blocks, Load, LoadReport, Speeds, StepModel
from router.placement.fleet import Fleet
from router.workers.worker import ALONE_S, KnownWorker, Sent

R, S = RequestId("r"), RequestId("s")
STEP = StepModel(fixed_s=0.01, token_s=0.01, attended_s=0.0, sequence_s=0.0)


def worker() -> KnownWorker:
    """100 tokens/s."""
    made = KnownWorker(replace(registration(), num_blocks=100, max_context_tokens=400))
    made.join_fleet(Fleet())
    hear_beat(made, now=0.0)
    return made


def hear_beat(
    made: KnownWorker, *, now: float, waiting_tokens: int = 0, running: int = 0, received: int = 0
) -> None:
    speeds = Speeds(
        prefill_tokens_per_s=100.0, decode_step_s=0.0, transfer_bytes_per_s=0.0, step=STEP
    )
    load = Load(running=running, waiting=0, waiting_tokens=waiting_tokens)
    blocks = Blocks(total=100, free=100, cached=0, leased=0)
    told = replace(beat(), speeds=speeds, load=load, num_received=received, blocks=blocks)
    made.note_beat(told, now=now)


def sent(num_uncached: int = 100, *, at: float = 1.0, num_tokens: int = 100) -> Sent:
    return Sent(
        at_s=at, num_tokens=num_tokens, num_uncached=num_uncached, prefill_s=num_uncached / 100
    )


def load(made: KnownWorker, *, now: float) -> tuple[float, int]:
    """Seconds of prompts before it, and sequences."""
    row = made.row
    return round(float(max(0.0, row["busy_until_s"] - now)), 6), int(row["running"])


def test_what_was_sent_counts_as_load_until_a_report_counts_it() -> None:
    made = worker()
    made.note_sent(R, sent(), first=0, suspect=False)
    assert load(made, now=1.0) == (1.0, 1)
    hear_beat(made, now=1.1)
    assert load(made, now=1.1) == (1.0, 1), "not posted: no report can count it"
    made.note_posted(R)
    made.note_sent(S, sent(200, at=1.2), first=0, suspect=False)
    made.note_posted(S)
    hear_beat(made, now=1.2, received=0)
    assert load(made, now=1.2) == (3.0, 2)
    hear_beat(made, now=1.5, running=1, waiting_tokens=80, received=1)
    assert load(made, now=1.5) == (2.8, 2), "80 tokens of the first and all of the second"
    hear_beat(made, now=3.0, running=2, waiting_tokens=150, received=2)
    assert load(made, now=3.0) == (1.5, 2)


def test_a_load_report_counts_as_a_beat_does() -> None:
    made = worker()
    made.note_sent(R, sent(), first=0, suspect=False)
    made.note_posted(R)
    report = LoadReport(
        num_received=1, running=3, waiting=1, waiting_tokens=50, context_tokens=70,
        num_free_blocks=40,
    )  # fmt: skip
    made.note_load(report, now=2.0)
    assert load(made, now=2.0) == (0.5, 4)
    assert (made.row["context_tokens"], made.row["free_tokens"]) == (70, 160)
    assert made.row["reported_at_s"] == 2.0


def test_messages_for_others_count_in_the_order_sent() -> None:
    """A decode worker of a pair is told when the prefill begins, maybe after later requests."""
    made = worker()
    made.note_sent(R, sent(0), first=1, suspect=False)
    made.note_sent(S, sent(), first=0, suspect=False)
    made.note_posted(S)
    hear_beat(made, now=2.0, running=1, received=1)
    assert load(made, now=2.0) == (0.0, 2), "the stream that has not come is no prompt"
    made.note_posted(R)
    hear_beat(made, now=2.5, running=2, received=2)
    assert load(made, now=2.5) == (0.0, 2)


def test_a_queue_takes_what_was_predicted_of_the_prompts_that_are_in_it() -> None:
    """A prompt of which nine tenths are cached is counted whole while it waits."""
    made = worker()
    made.note_sent(R, sent(100, num_tokens=1_000), first=0, suspect=False)
    made.note_posted(R)
    hear_beat(made, now=2.0, waiting_tokens=1_000, received=1)
    assert load(made, now=2.0)[0] == 1.0
    hear_beat(made, now=2.5, waiting_tokens=50, received=1)
    assert load(made, now=2.5)[0] == 0.5
    # Another router's prompts are taken for like ones.
    hear_beat(made, now=2.5, waiting_tokens=3_000, received=1)
    assert load(made, now=2.5)[0] == 3.0
    made.note_heard(R, 0)
    hear_beat(made, now=3.0, waiting_tokens=300, received=1)
    assert load(made, now=3.0)[0] == 3.0, "of nothing known, by its measured speed"


def test_blocks_that_keep_a_prefix_for_nobody_are_free_to_take() -> None:
    made = worker()
    blocks = Blocks(total=100, free=10, cached=50, leased=40)
    made.note_beat(replace(beat(), blocks=blocks), now=1.0)
    assert made.row["free_tokens"] == 240


def test_a_request_that_ended_or_was_heard_between_two_reports_is_no_prompt_to_compute() -> None:
    made = worker()
    made.note_sent(R, sent(), first=0, suspect=False)
    made.note_sent(S, sent(), first=0, suspect=False)
    assert load(made, now=1.0) == (2.0, 2)
    made.note_heard(R, 0)
    assert load(made, now=1.0) == (1.0, 2)
    for request in (R, S):
        made.note_ended(request)
    assert load(made, now=1.0) == (0.0, 0)


def test_only_a_ready_worker_may_be_chosen_and_one_that_left_has_no_row() -> None:
    fleet = Fleet()
    made = KnownWorker(registration())
    made.join_fleet(fleet)
    assert not fleet.ready[0]
    hear_beat(made, now=0.0)
    assert fleet.ready[0]
    made.note_beat(replace(beat(), state="draining"), now=1.0)
    assert not fleet.ready[0]
    hear_beat(made, now=2.0)
    made.note_mismatched("another version")
    hear_beat(made, now=3.0)
    assert not fleet.ready[0] and made.why == "another version"
    made.leave_fleet()
    hear_beat(made, now=4.0)
    assert fleet.slot_of(made.id) is None and not fleet.ready.any()


def test_a_request_is_unheard_until_a_token_comes_that_only_this_worker_can_say() -> None:
    """A decode worker repeats the token that the prefill worker sampled."""
    made = worker()
    made.note_sent(R, sent(0), first=1, suspect=False)
    made.note_heard(RequestId("other"), 5)
    made.note_heard(R, 0)
    assert set(made.unheard) == {R} and not made.is_empty
    made.note_heard(R, 1)
    assert not made.unheard


def test_a_suspect_is_joined_by_nobody_until_it_is_heard_has_ended_or_takes_too_long() -> None:
    made = worker()
    for over in (partial(made.note_heard, R, 0), partial(made.note_ended, R)):
        made.note_sent(R, sent(), first=0, suspect=True)
        assert made.is_held(now=1.0 + ALONE_S / 2)
        assert not made.is_held(now=1.0 + ALONE_S)
        over()
        assert not made.is_held(now=1.0)
