from protocol.ids import RequestId
from router.requests.trace import RequestTrace, TraceRing


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
        ring.add(trace(name))
    assert ring.find(RequestId("a")) == ()
    assert ring.find(RequestId("c")) == (trace("c"),)


def test_a_request_of_several_choices_is_found_by_its_own_name() -> None:
    ring = TraceRing()
    for name in ("r.0", "r.1", "r.x", "r2.0"):
        ring.add(trace(name))
    assert ring.find(RequestId("r")) == (trace("r.0"), trace("r.1"))
