"""What a request does about what it hears: messages in, instructions out."""

import pytest
from msgspec.structs import replace
from support.routed_request import (
    EOS,
    ONE,
    PROMPT,
    TICKET,
    TWO,
    WIRE,
    D,
    P,
    aborted,
    alone,
    deliver,
    emit,
    failed,
    finished,
    gone,
    hear,
    in_state,
    landed,
    new_request,
    prefill_done,
    route_alone,
    route_apart,
    send_abort,
    send_decode,
    send_prefill,
    started,
)

from protocol.ids import RequestId, WorkerId
from protocol.messages import Decode, Prefill, PrefixPull
from router.requests.ending import EndWell
from router.requests.events import PoisonRequest, RequestFailed, Route, TooLong
from router.requests.instructions import GiveUp, PlaceAgain
from router.requests.request import RoutedRequest
from router.requests.states import WITH_WORKERS, RequestState

# -- the way of a request that nothing happens to -----------------------------------------


def test_apart_the_prompt_goes_to_the_prefill_worker_alone() -> None:
    routed = new_request()
    assert route_apart(routed) == send_prefill()
    assert (routed.attempt, routed.route) == (1, Route(reason="apart", prefill=P, decode=D))


def test_alone_the_prompt_goes_to_the_decode_worker_without_a_ticket() -> None:
    routed = new_request()
    assert route_alone(routed) == send_decode(None)
    assert routed.route == Route(reason="alone", prefill=None, decode=D)


def test_a_ticket_goes_to_the_decode_worker_as_soon_as_prefill_has_begun() -> None:
    routed = in_state(RequestState.PREFILL)
    assert hear(routed, P, started()) == [send_decode(TICKET)]


def test_workers_are_told_what_is_left_of_the_time() -> None:
    routed = new_request()
    first = route_apart(routed, remaining_s=9.5).message
    (send,) = hear(routed, P, started(), remaining_s=8.25)
    second = send.message  # type: ignore[union-attr]
    assert isinstance(first, Prefill) and isinstance(second, Decode)
    assert (first.deadline_s, second.deadline_s) == (9.5, 8.25)


def test_the_first_token_is_delivered_before_the_blocks_have_landed() -> None:
    routed = in_state(RequestState.HANDOVER)
    assert hear(routed, P, emit(0, 8), prefill_done()) == [deliver(0, 8)]


def test_each_token_is_delivered_as_it_comes() -> None:
    routed = alone()
    assert hear(routed, D, emit(0, 8), emit(1, 9)) == [deliver(0, 8), deliver(1, 9)]
    assert routed.generated == [8, 9]


def test_a_request_ends_when_its_decode_worker_has_finished() -> None:
    routed = in_state(RequestState.DECODE)
    hear(routed, D, emit(0, 8), emit(1, EOS))
    ending = finished("stop", num_tokens=2, stopped_by="\n")
    assert hear(routed, D, ending) == [EndWell("stop", "\n")]
    assert (routed.state, routed.outcome) == (RequestState.FINISHED, "stop")


def test_a_first_token_that_is_the_last_calls_the_decode_worker_off() -> None:
    routed = in_state(RequestState.HANDOVER)
    hear(routed, P, emit(0, EOS))
    instructions = hear(routed, P, finished("stop", num_tokens=1))
    assert instructions == [send_abort(D, "finished"), EndWell("stop")]


# -- tokens that come twice, wrong or not at all ------------------------------------------


def test_the_decode_workers_repetition_of_the_first_token_is_dropped() -> None:
    routed = in_state(RequestState.HANDOVER)
    hear(routed, P, emit(0, 8))
    hear(routed, D, landed())
    assert hear(routed, D, emit(0, 8), emit(1, 9)) == [deliver(1, 9)]


def test_the_first_token_may_come_from_decode_first() -> None:
    routed = in_state(RequestState.DECODE)
    assert hear(routed, D, emit(0, 8)) == [deliver(0, 8)]
    assert hear(routed, P, emit(0, 8)) == []


def test_another_token_in_the_place_of_a_delivered_one_loses_the_attempt() -> None:
    routed = alone()
    hear(routed, D, emit(0, 8))
    why = "token 0 of decode-0 differs from the one already sent"
    assert hear(routed, D, emit(0, 9)) == [send_abort(D, why), PlaceAgain(why, D, False)]
    assert routed.generated == [8]


def test_a_missing_token_loses_the_attempt() -> None:
    routed = alone()
    hear(routed, D, emit(0, 8))
    why = "token 2 of decode-0 came when 1 was due"
    assert hear(routed, D, emit(2, 9)) == [send_abort(D, why), PlaceAgain(why, D, False)]


def test_a_worker_that_finishes_with_tokens_on_the_way_is_not_believed() -> None:
    routed = alone()
    hear(routed, D, emit(0, 8))
    why = "decode-0 finished at 2 tokens, of which 1 came"
    assert hear(routed, D, finished("stop", num_tokens=2)) == [PlaceAgain(why, D, False)]


def test_a_worker_that_finishes_too_soon_for_its_reason_is_not_believed() -> None:
    routed = alone()
    hear(routed, D, emit(0, 8))
    why = "decode-0 finished at 1 of 3 tokens"
    assert hear(routed, D, finished("length", num_tokens=1)) == [PlaceAgain(why, D, False)]


# -- workers that are lost ----------------------------------------------------------------


def test_a_prefill_worker_lost_before_it_began_leaves_nobody_to_call_off() -> None:
    routed = in_state(RequestState.PREFILL)
    assert hear(routed, P, gone()) == [PlaceAgain("prefill-0 was lost", P, False)]


def test_a_prefill_worker_lost_while_it_hands_over_calls_the_decode_worker_off() -> None:
    routed = in_state(RequestState.HANDOVER)
    why = "prefill-0 was lost"
    assert hear(routed, P, gone()) == [send_abort(D, why), PlaceAgain(why, P, False)]


def test_a_decode_worker_lost_while_it_fetches_calls_the_prefill_worker_off() -> None:
    routed = in_state(RequestState.HANDOVER)
    why = "decode-0 was lost"
    assert hear(routed, D, gone()) == [send_abort(P, why), PlaceAgain(why, D, False)]


def test_a_decode_worker_lost_before_it_was_told_loses_the_attempt_all_the_same() -> None:
    routed = in_state(RequestState.PREFILL)
    why = "decode-0 was lost"
    assert hear(routed, D, gone()) == [send_abort(P, why), PlaceAgain(why, D, False)]


def test_a_decode_worker_lost_after_the_blocks_landed_concerns_nobody_else() -> None:
    routed = in_state(RequestState.DECODE)
    assert hear(routed, D, gone()) == [PlaceAgain("decode-0 was lost", D, False)]


@pytest.mark.parametrize("message", [gone(), aborted(), failed("internal"), failed("overloaded")])
def test_a_prefill_worker_whose_blocks_have_landed_is_not_missed(message: object) -> None:
    routed = in_state(RequestState.DECODE)
    assert hear(routed, P, message) == []  # type: ignore[arg-type]
    assert routed.state is RequestState.DECODE


def test_a_worker_that_drops_the_request_loses_the_attempt() -> None:
    routed = alone()
    why = "decode-0 dropped the request"
    assert hear(routed, D, aborted()) == [PlaceAgain(why, D, False)]


def test_a_ticket_of_another_epoch_loses_the_attempt() -> None:
    routed = in_state(RequestState.PREFILL)
    why = "prefill-0 gave a ticket of another epoch"
    instructions = hear(routed, P, started(ticket=replace(TICKET, epoch=TWO)))
    assert instructions == [send_abort(P, why), PlaceAgain(why, P, False)]


def test_an_attempt_is_lost_once() -> None:
    routed = in_state(RequestState.HANDOVER)
    hear(routed, P, gone())
    assert [*hear(routed, D, gone()), *hear(routed, D, failed("source_lost"))] == []
    assert routed.state is RequestState.PLACING


@pytest.mark.parametrize(("token", "reason"), [(EOS, "stop"), (9, "length")])
def test_a_worker_lost_after_the_last_token_ends_the_request_well(token: int, reason: str) -> None:
    routed = alone()
    hear(routed, D, emit(0, 8), emit(1, 8), emit(2, token))
    assert hear(routed, D, gone()) == [EndWell(reason)]  # type: ignore[arg-type]
    assert routed.outcome == reason


# -- the next attempt ---------------------------------------------------------------------


def lost_after(*tokens: int) -> RoutedRequest:
    routed = alone()
    hear(routed, D, *(emit(index, token) for index, token in enumerate(tokens)), gone())
    return routed


def test_the_next_attempt_tells_the_worker_what_the_client_has() -> None:
    assert route_alone(lost_after(8, 9)) == send_decode(None, attempt=2, generated=(8, 9))


def test_both_workers_of_the_next_attempt_are_told_the_same() -> None:
    routed = lost_after(8)
    assert route_apart(routed) == send_prefill(attempt=2, generated=(8,))
    hear(routed, P, emit(1, 9, attempt=2))
    instructions = hear(routed, P, started(attempt=2))
    assert instructions == [send_decode(TICKET, attempt=2, generated=(8,))]


def test_the_next_attempt_goes_on_where_the_last_one_stopped() -> None:
    routed = lost_after(8)
    route_alone(routed)
    assert hear(routed, D, emit(0, 7), emit(1, 7)) == []
    assert hear(routed, D, emit(1, 9, attempt=2)) == [deliver(1, 9, attempt=2)]
    assert routed.generated == [8, 9]


def test_each_attempt_keeps_its_own_outcome() -> None:
    routed = lost_after(8)
    route_alone(routed)
    hear(routed, D, emit(1, EOS, attempt=2), finished("stop", num_tokens=2, attempt=2))
    assert [attempt.outcome for attempt in routed.attempts] == ["decode-0 was lost", "stop"]


# -- failures that workers tell -----------------------------------------------------------


def test_a_worker_without_room_has_refused_and_not_failed() -> None:
    routed = alone()
    why = "decode-0: a reason"
    assert hear(routed, D, failed("overloaded")) == [PlaceAgain(why, D, True)]


def test_a_prompt_too_long_for_the_prefill_worker_is_placed_elsewhere() -> None:
    routed = in_state(RequestState.PREFILL)
    why = "prefill-0: a reason"
    assert hear(routed, P, failed("too_long")) == [PlaceAgain(why, P, True)]


def test_a_lost_source_is_the_prefill_workers_fault() -> None:
    routed = in_state(RequestState.HANDOVER)
    why = "decode-0: a reason"
    expected = [send_abort(P, why), PlaceAgain(why, P, False)]
    assert hear(routed, D, failed("source_lost")) == expected


def test_a_source_lost_without_a_prefill_worker_is_nobodys_fault() -> None:
    why = "decode-0: a reason"
    assert hear(alone(), D, failed("source_lost")) == [PlaceAgain(why, None, False)]


def test_a_failure_that_may_pass_is_tried_elsewhere() -> None:
    why = "decode-0: a reason"
    assert hear(alone(), D, failed("internal")) == [PlaceAgain(why, D, False)]


@pytest.mark.parametrize("code", ["internal", "deadline"])
def test_a_failure_that_will_not_pass_ends_the_request(code: str) -> None:
    routed = in_state(RequestState.HANDOVER)
    instructions = hear(routed, D, failed(code, retryable=False))  # type: ignore[arg-type]
    abort, give_up = instructions
    assert abort == send_abort(P, "decode-0: a reason")
    assert isinstance(give_up, GiveUp) and isinstance(give_up.error, RequestFailed)
    assert (give_up.error.code, str(give_up.error)) == (code, "decode-0: a reason")
    assert routed.outcome == "failed: decode-0: a reason"


def test_a_request_too_long_for_decode_is_the_callers_mistake_before_the_first_token() -> None:
    (give_up,) = hear(alone(), D, failed("too_long"))
    assert isinstance(give_up, GiveUp) and isinstance(give_up.error, TooLong)


def test_a_request_that_grew_too_long_for_decode_has_failed() -> None:
    routed = alone()
    hear(routed, D, emit(0, 8))
    (give_up,) = hear(routed, D, failed("too_long"))
    assert isinstance(give_up, GiveUp) and isinstance(give_up.error, RequestFailed)
    assert give_up.error.code == "too_long"


# -- endings that come from the client's side ---------------------------------------------


@pytest.mark.parametrize(
    ("state", "told"),
    [
        (RequestState.PLACING, []),
        (RequestState.PREFILL, [P]),
        (RequestState.HANDOVER, [P, D]),
        (RequestState.DECODE, [D]),
    ],
)
def test_a_client_that_leaves_is_told_to_whoever_may_hold_blocks(
    state: RequestState, told: list[WorkerId]
) -> None:
    routed = in_state(state)
    sends = routed.close("the client is gone", client_left=True)
    assert sends == [send_abort(worker, "the client is gone") for worker in told]
    assert (routed.state, routed.outcome) == (
        RequestState.ABORTED,
        "aborted: the client is gone",
    )


@pytest.mark.parametrize("state", WITH_WORKERS)
def test_a_deadline_fails_the_request_and_calls_its_workers_off(state: RequestState) -> None:
    routed = in_state(state)
    assert routed.close("not finished within 60 s", client_left=False)
    assert (routed.state, routed.outcome) == (
        RequestState.FAILED,
        "failed: not finished within 60 s",
    )
    assert routed.attempts[-1].outcome == routed.outcome


def test_a_worker_that_was_called_off_is_not_called_off_again() -> None:
    routed = in_state(RequestState.HANDOVER)
    hear(routed, P, gone())
    assert routed.close("the client is gone", client_left=True) == []


# -- what the trace keeps -----------------------------------------------------------------


def test_the_trace_has_what_each_worker_said_of_its_part() -> None:
    routed = in_state(RequestState.HANDOVER)
    hear(routed, P, emit(0, 8), prefill_done())
    hear(routed, D, landed(), emit(1, EOS), finished("stop", num_tokens=2))
    (attempt,) = routed.attempts
    assert (attempt.prefill_cached_tokens, attempt.prefill_blocks_reused) == (4, 1)
    assert (attempt.prefill_queued_s, attempt.prefill_s) == (0.5, 0.25)
    assert (attempt.transport, attempt.blocks_reused, attempt.blocks_moved) == ("shm", 1, 2)
    assert (attempt.bytes_moved, attempt.fetch_s, attempt.exposed_s) == (64, 0.02, 0.01)
    assert (attempt.decode_queued_s, attempt.decode_s) == (0.125, 0.75)


def test_a_decode_worker_alone_tells_of_the_prompt_too() -> None:
    routed = alone()
    hear(routed, D, emit(0, EOS), finished("stop", num_tokens=1))
    (attempt,) = routed.attempts
    assert (attempt.prefill_s, attempt.blocks_reused, attempt.transport) == (0.25, 1, "")


def test_the_first_to_compute_the_prompt_says_what_was_cached_of_it() -> None:
    routed = in_state(RequestState.PREFILL)
    hear(routed, P, started(cached_tokens=99), gone())
    assert routed.cached_tokens == len(PROMPT)
    route_apart(routed)
    hear(routed, P, started(attempt=2, cached_tokens=0))
    assert (routed.cached_tokens, routed.attempts[1].prefill_cached_tokens) == (len(PROMPT), 0)


def test_a_gone_incarnation_is_not_its_successor() -> None:
    routed = alone()
    assert hear(routed, D, gone(), epoch=TWO) == []
    assert hear(routed, D, gone(), epoch=ONE) != []


# -- workers that are lost with it --------------------------------------------------------

OTHER = RequestId("other~1")


def test_the_second_worker_lost_with_it_alone_as_the_last_given_is_the_last() -> None:
    routed = alone()
    (again,) = hear(routed, D, gone(WIRE, OTHER))
    assert isinstance(again, PlaceAgain) and routed.num_suspected == 1
    route_alone(routed)
    (over,) = hear(routed, D, gone(WIRE))
    assert isinstance(over, GiveUp) and isinstance(over.error, PoisonRequest)
    assert routed.state is RequestState.FAILED and routed.outcome.startswith("failed: ")


@pytest.mark.parametrize(
    "second", [(WIRE, OTHER), (OTHER,), ()], ids=["beside others", "others", "nobody"]
)
def test_who_was_not_alone_the_last_given_is_tried_again(second: tuple[RequestId, ...]) -> None:
    routed = alone()
    hear(routed, D, gone(WIRE))
    route_alone(routed)
    (again,) = hear(routed, D, gone(*second))
    assert isinstance(again, PlaceAgain)


def test_a_token_of_the_decode_worker_clears_it_and_one_of_the_prefill_worker_does_not() -> None:
    routed = in_state(RequestState.HANDOVER)
    hear(routed, D, gone(WIRE))
    route_apart(routed)
    hear(routed, P, started(attempt=2), emit(0, 8, attempt=2))
    assert routed.num_suspected == 1
    hear(routed, D, landed(attempt=2), emit(0, 8, attempt=2))
    assert routed.num_suspected == 1, "it has said what was known"
    hear(routed, D, emit(1, 9, attempt=2))
    assert routed.num_suspected == 0


def test_a_prefill_worker_that_has_handed_over_may_go_as_often_as_it_likes() -> None:
    routed = in_state(RequestState.DECODE)
    assert hear(routed, P, gone(WIRE)) == []
    assert routed.num_suspected == 0


# -- a prefix that was pulled --------------------------------------------------------------


def test_what_a_peer_had_counts_as_cached_and_the_trace_names_it() -> None:
    routed = in_state(RequestState.PREFILL)
    pull = PrefixPull(source=WorkerId("prefill-9"), num_tokens=4, seconds=0.25, outcome="landed")
    hear(routed, P, replace(started(), cached_tokens=0, pull=pull))
    assert routed.cached_tokens == 4
    trace = routed.attempts[-1]
    assert (trace.pulled_from, trace.pulled_tokens, trace.pull_s) == ("prefill-9", 4, 0.25)
    assert (trace.pull_outcome, trace.prefill_cached_tokens) == ("landed", 0)


def test_a_decode_worker_alone_says_it_at_the_end() -> None:
    routed = alone()
    pull = PrefixPull(source=P, num_tokens=0, seconds=0.1, outcome="declined")
    hear(routed, D, emit(0, EOS), replace(finished("stop", num_tokens=1), pull=pull))
    trace = routed.attempts[-1]
    assert (trace.pulled_from, trace.pulled_tokens) == (P, 0)
    assert trace.pull_outcome == "declined" and routed.state is RequestState.FINISHED


def test_workers_lost_at_different_work_do_not_add_up() -> None:
    """First a decode worker at a token, then a prefill worker at the prompt."""
    routed = in_state(RequestState.HANDOVER)
    hear(routed, D, gone(WIRE))
    route_apart(routed)
    (*_, again) = hear(routed, P, gone(WIRE))
    assert isinstance(again, PlaceAgain) and routed.num_suspected == 1
    route_apart(routed)
    (*_, over) = hear(routed, P, gone(WIRE))
    assert isinstance(over, GiveUp) and isinstance(over.error, PoisonRequest)


def test_a_decode_worker_that_was_told_nothing_yet_was_not_lost_with_it() -> None:
    routed = in_state(RequestState.PREFILL)
    (*_, again) = hear(routed, D, gone(WIRE))
    assert isinstance(again, PlaceAgain) and routed.num_suspected == 0


def test_who_is_to_say_something_next_is_known() -> None:
    assert new_request().awaited_worker() is None
    routed = in_state(RequestState.PREFILL)
    assert routed.awaited_worker() == (P, "first_token")
    hear(routed, P, started())
    assert routed.awaited_worker() == (P, "first_token")
    hear(routed, P, emit(0, 8))
    assert routed.awaited_worker() == (D, "next_token") and not routed.is_streaming
    hear(routed, D, landed(), emit(1, 9))
    assert routed.awaited_worker() == (D, "next_token") and routed.is_streaming
    assert alone().awaited_worker() == (D, "first_token")
