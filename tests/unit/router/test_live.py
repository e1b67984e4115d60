from support.words import beat, registration

from protocol.ids import RequestId
from router.live import BEAT_LAG_S, LiveWorker

R = RequestId("r")


def worker() -> LiveWorker:
    made = LiveWorker(registration())
    made.note_beat(beat(), now=0.0)
    return made


def load(made: LiveWorker) -> tuple[int, int]:
    candidate = made.candidate(num_cached_tokens=0)
    return candidate.num_waiting_tokens, candidate.num_running


def test_what_was_sent_counts_as_load_until_a_beat_can_have_counted_it() -> None:
    made = worker()
    made.note_sent(R, 100, now=1.0)
    assert load(made) == (100, 1)
    made.note_beat(beat(), now=1.0 + BEAT_LAG_S / 2)
    assert load(made) == (100, 1)
    made.note_beat(beat(), now=1.0 + BEAT_LAG_S)
    assert load(made) == (0, 0)


def test_a_request_that_ended_between_two_beats_is_no_load() -> None:
    made = worker()
    made.note_sent(R, 100, now=1.0)
    made.note_ended(R)
    assert load(made) == (0, 0)
