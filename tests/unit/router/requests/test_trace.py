from protocol.ids import RequestId
from router.requests.trace import KEEP_S, RequestTrace, TraceRing


def trace(name: str) -> RequestTrace:
    return RequestTrace(
        request=RequestId(name),
        outcome="stop",
        prompt_tokens=1,
        output_tokens=1,
        cached_tokens=0,
        placed_s=0.0,
        first_token_s=0.0,
        total_s=0.0,
        attempts=(),
    )


def test_the_oldest_trace_makes_room() -> None:
    ring = TraceRing(num_kept=2)
    for name in ("a", "b", "c"):
        ring.add(trace(name), now=1.0)
    assert ring.find(RequestId("a"), now=1.0) == ()
    assert ring.find(RequestId("c"), now=1.0) == (trace("c"),)


def test_a_trace_is_kept_for_minutes_whatever_comes_after_it() -> None:
    ring = TraceRing()
    ring.add(trace("a"), now=1.0)
    ring.add(trace("b"), now=KEEP_S)
    assert ring.find(RequestId("a"), now=1.0 + KEEP_S) == (trace("a"),)
    assert ring.find(RequestId("a"), now=1.1 + KEEP_S) == ()
    ring.add(trace("a"), now=2.0 + KEEP_S)
    assert ring.find(RequestId("a"), now=2.0 + KEEP_S) == (trace("a"),)


def test_a_request_of_several_choices_is_found_by_its_own_name() -> None:
    ring = TraceRing()
    for name in ("r.1", "r.0", "r.x", "r2.0"):
        ring.add(trace(name), now=1.0)
    assert ring.find(RequestId("r"), now=1.0) == (trace("r.0"), trace("r.1"))
