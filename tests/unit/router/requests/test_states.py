"""Every row of a request's table is walked by what can happen to it; nothing else moves it."""

from collections.abc import Callable

import pytest
from support.routed_request import (
    EOS,
    ID,
    ONE,
    TWO,
    D,
    P,
    aborted,
    emit,
    failed,
    finished,
    gone,
    hear,
    in_state,
    landed,
    prefill_done,
    route_alone,
    route_apart,
    started,
)

from protocol.ids import Epoch, WorkerId
from protocol.state_table import IllegalTransition
from router.requests.request import RoutedRequest
from router.requests.states import REQUEST_TABLE, WITH_WORKERS, RequestEvent, RequestState
from router.workers.worker_messages import RequestMessage

ENDED = [state for state in RequestState if REQUEST_TABLE.is_final(state)]


def holder(routed: RoutedRequest) -> WorkerId:
    return D if routed.state is RequestState.DECODE else P


HAPPENINGS: dict[RequestEvent, Callable[[RoutedRequest], object]] = {
    RequestEvent.ROUTED_APART: route_apart,
    RequestEvent.ROUTED_ALONE: route_alone,
    RequestEvent.STARTED: lambda routed: hear(routed, P, started()),
    RequestEvent.LANDED: lambda routed: hear(routed, D, landed()),
    RequestEvent.LOST: lambda routed: hear(routed, holder(routed), gone()),
    RequestEvent.ENDED_WELL: lambda routed: hear(
        routed, holder(routed), emit(0, EOS), finished("stop", num_tokens=1)
    ),
    RequestEvent.GIVEN_UP: lambda routed: routed.close("test", client_left=False),
    RequestEvent.CLOSED: lambda routed: routed.close("test", client_left=True),
}


@pytest.mark.parametrize(("row", "target"), REQUEST_TABLE.rows.items())
def test_every_row_of_the_table_is_walked(
    row: tuple[RequestState, RequestEvent], target: RequestState
) -> None:
    state, event = row
    routed = in_state(state)
    assert routed.state is state
    HAPPENINGS[event](routed)
    assert routed.state is target


@pytest.mark.parametrize("state", [*WITH_WORKERS, *ENDED])
@pytest.mark.parametrize("route", [route_apart, route_alone])
def test_an_attempt_begins_nowhere_but_in_placing(
    state: RequestState, route: Callable[[RoutedRequest], object]
) -> None:
    routed = in_state(state)
    with pytest.raises(IllegalTransition, match=rf"r~1: routed_\w+ in state {state}; story: \["):
        route(routed)
    assert (routed.state, routed.attempt) == (state, in_state(state).attempt)


def test_a_missing_row_tells_the_story_of_the_request() -> None:
    routed = in_state(RequestState.DECODE)
    story = "routed_apart->prefill, started->handover, landed->decode"
    with pytest.raises(IllegalTransition, match=story):
        route_alone(routed)


@pytest.mark.parametrize(
    ("state", "worker", "message"),
    [
        (RequestState.PREFILL, P, prefill_done()),
        (RequestState.PREFILL, D, landed()),
        (RequestState.HANDOVER, P, started()),
        (RequestState.HANDOVER, P, prefill_done()),
        (RequestState.DECODE, P, started()),
        (RequestState.DECODE, P, prefill_done()),
        (RequestState.DECODE, D, landed()),
        (RequestState.DECODE, P, failed("internal")),
        (RequestState.DECODE, P, aborted()),
        (RequestState.DECODE, P, gone()),
    ],
    ids=str,
)
def test_a_message_that_changes_nothing_in_this_state_is_answered_by_nothing(
    state: RequestState, worker: WorkerId, message: RequestMessage
) -> None:
    routed = in_state(state)
    assert hear(routed, worker, message) == []
    assert routed.state is state


MESSAGES: list[RequestMessage] = [
    started(),
    prefill_done(),
    landed(),
    emit(0, 8),
    finished("stop", num_tokens=0),
    failed("internal"),
    aborted(),
    gone(),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
@pytest.mark.parametrize("state", [RequestState.PLACING, *ENDED])
def test_a_request_that_no_worker_has_hears_nothing(
    state: RequestState, message: RequestMessage
) -> None:
    routed = in_state(state)
    assert [*hear(routed, P, message), *hear(routed, D, message)] == []
    assert routed.state is state


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
@pytest.mark.parametrize("state", WITH_WORKERS)
@pytest.mark.parametrize(
    ("worker", "epoch"), [(WorkerId("decode-1"), ONE), (P, TWO), (D, TWO), (D, Epoch(0))]
)
def test_other_workers_and_other_incarnations_are_not_heard(
    state: RequestState, message: RequestMessage, worker: WorkerId, epoch: Epoch
) -> None:
    routed = in_state(state)
    assert hear(routed, worker, message, epoch=epoch) == []
    assert (routed.state, routed.generated) == (state, [])


@pytest.mark.parametrize("attempt", [0, 2])
@pytest.mark.parametrize("state", WITH_WORKERS)
def test_messages_of_another_attempt_are_not_heard(state: RequestState, attempt: int) -> None:
    routed = in_state(state)
    stale: list[RequestMessage] = [
        started(attempt=attempt),
        prefill_done(attempt=attempt),
        landed(attempt=attempt),
        emit(0, 8, attempt=attempt),
        finished("stop", num_tokens=0, attempt=attempt),
        failed("internal", attempt=attempt),
        aborted(attempt=attempt),
    ]
    assert [*hear(routed, P, *stale), *hear(routed, D, *stale)] == []
    assert (routed.state, routed.generated) == (state, [])


@pytest.mark.parametrize("state", ENDED)
def test_an_ended_request_ends_once(state: RequestState) -> None:
    routed = in_state(state)
    outcome = routed.outcome
    assert routed.close("again", client_left=True) == []
    assert (routed.state, routed.outcome, routed.request.id) == (state, outcome, ID)
