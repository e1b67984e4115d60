"""What is read of a prompt reaches the client first, whole and once, whoever says it when."""

import pytest
from msgspec.structs import replace
from support.routed_request import (
    DECODE,
    EOS,
    PREFILL,
    PROMPT,
    SAMPLING,
    WIRE,
    D,
    P,
    deliver,
    emit,
    finished,
    gone,
    hear,
    landed,
    prefill_done,
    started,
)

from protocol.ids import RequestId
from protocol.messages import Decode, Prefill, PromptScores, PromptVector, ReadPrompt
from protocol.readings import PoolPrompt, PromptReading, ScorePrompt, TokenScore
from router.requests.ending import EndWell
from router.requests.events import GenerationRequest, Pooled, Scored
from router.requests.instructions import Deliver, PlaceAgain, Send
from router.requests.request import RoutedRequest


def asking(reading: PromptReading | None, *, max_tokens: int = 3) -> RoutedRequest:
    request = GenerationRequest(
        id=RequestId("r"), token_ids=PROMPT, sampling=replace(SAMPLING, max_tokens=max_tokens),
        salt="salt", reading=reading, deadline_s=60.0,
    )  # fmt: skip
    return RoutedRequest(request, WIRE)


def apart(routed: RoutedRequest) -> Prefill | Decode | ReadPrompt:
    return asked(routed.begin_attempt("apart", prefill=PREFILL, decode=DECODE, remaining_s=60.0))


def single(routed: RoutedRequest) -> Prefill | Decode | ReadPrompt:
    return asked(routed.begin_attempt("one", prefill=None, decode=DECODE, remaining_s=60.0))


def asked(send: object) -> Prefill | Decode | ReadPrompt:
    assert isinstance(send, Send) and isinstance(send.message, Prefill | Decode | ReadPrompt)
    return send.message


def scores(first: int, *, attempt: int = 1, stop: int = 5) -> PromptScores:
    said = tuple(
        TokenScore(token_id=PROMPT[index], logprob=-float(index), rank=1, top=())
        for index in range(first, stop)
    )
    return PromptScores(request=WIRE, attempt=attempt, first=first, scores=said)


def told(first: int, *, stop: int = 5) -> Deliver:
    return Deliver(Scored(first=first, scores=scores(first, stop=stop).scores))


def handed_over(reading: PromptReading) -> RoutedRequest:
    routed = asking(reading)
    assert apart(routed).reading == reading
    (send,) = hear(routed, P, started())
    assert asked(send).reading is None, "decode is asked for what prefill says"
    return routed


def test_scores_come_before_the_token_that_follows_them() -> None:
    routed = handed_over(ScorePrompt())
    assert hear(routed, P, scores(1, stop=3)) == [told(1, stop=3)]
    assert hear(routed, P, scores(3), emit(0, 11)) == [told(3), deliver(0, 11)]
    assert hear(routed, P, prefill_done()) == []


def test_tokens_and_the_ending_wait_for_scores_that_come_later() -> None:
    routed = handed_over(ScorePrompt())
    assert hear(routed, P, scores(1, stop=3)) == [told(1, stop=3)]
    assert hear(routed, D, landed(), emit(0, 11), emit(1, EOS)) == []
    assert hear(routed, D, finished("stop", num_tokens=2)) == []
    last = hear(routed, P, scores(3))
    assert last[:3] == [told(3), deliver(0, 11), deliver(1, EOS)]
    assert last[-1] == EndWell("stop")


def test_scores_lost_with_their_worker_are_asked_for_again_from_the_first_that_lacks() -> None:
    routed = handed_over(ScorePrompt(num_top=2))
    hear(routed, P, scores(1, stop=3))
    hear(routed, D, landed(), emit(0, 11))
    assert isinstance(hear(routed, P, gone())[-1], PlaceAgain)
    again = apart(routed)
    assert (again.reading, again.generated) == (ScorePrompt(first=3, num_top=2), (11,))
    assert hear(routed, P, scores(3, attempt=2)) == [told(3), deliver(0, 11)]


def test_when_all_tokens_are_there_one_worker_is_asked_for_the_scores_alone() -> None:
    routed = handed_over(ScorePrompt())
    hear(routed, D, landed(), emit(0, EOS), finished("stop", num_tokens=1))
    assert isinstance(hear(routed, P, gone())[-1], PlaceAgain)
    assert not routed.generates
    again = single(routed)
    assert isinstance(again, ReadPrompt)
    assert (again.generated, again.sampling.max_tokens, again.reading) == ((), 0, ScorePrompt())
    assert hear(routed, D, scores(1, attempt=2)) == [told(1), deliver(0, EOS)]
    assert hear(routed, D, finished("length", num_tokens=0, attempt=2)) == [EndWell("stop")]


def test_a_worker_that_finishes_without_having_said_the_scores_is_lost() -> None:
    for reading, max_tokens in ((ScorePrompt(), 0), (PoolPrompt(kind="last"), 0)):
        routed = asking(reading, max_tokens=max_tokens)
        assert isinstance(single(routed), ReadPrompt)
        done = hear(routed, D, finished("length", num_tokens=0))
        why = "decode-0 finished, and has not said all of the prompt"
        assert done == [PlaceAgain(why, D, is_refusal=False)]
    routed = handed_over(ScorePrompt())
    assert isinstance(hear(routed, P, prefill_done())[-1], PlaceAgain)


VECTOR = PromptVector(request=WIRE, attempt=1, values=b"abcd")


@pytest.mark.parametrize("wrong", [scores(2), scores(1, stop=1), VECTOR])
def test_what_is_not_due_costs_the_worker_the_request(wrong: PromptScores | PromptVector) -> None:
    routed = handed_over(ScorePrompt())
    heard = hear(routed, P, wrong)
    assert isinstance(heard[-1], PlaceAgain) and heard[-1].suspect == P


def test_a_vector_is_told_once_and_survives_the_loss_of_the_word_after_it() -> None:
    routed = asking(PoolPrompt(kind="mean"), max_tokens=0)
    single(routed)
    assert hear(routed, D, VECTOR) == [Deliver(Pooled(values=b"abcd"))]
    assert hear(routed, D, gone()) == [EndWell("length")]


def test_a_prompt_of_which_nothing_was_asked_is_still_computed() -> None:
    routed = asking(None, max_tokens=0)
    assert isinstance(single(routed), ReadPrompt)
    assert isinstance(hear(routed, D, gone())[-1], PlaceAgain)
    single(routed)
    assert hear(routed, D, finished("length", num_tokens=0, attempt=2)) == [EndWell("length")]
