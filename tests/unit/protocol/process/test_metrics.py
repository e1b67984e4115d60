from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from protocol.process.metrics import TokenHistogram

BUCKETS = (0.005, 0.5, 1, 30)


@given(st.lists(st.sampled_from([0.0, 0.005, 0.006, 0.5, 0.75, 1.0, 2.0, 30.0, 31.0])))
def test_a_histogram_of_tokens_says_what_prometheus_own_would(observed: list[float]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    fast = TokenHistogram("gap_seconds", "Gaps.", buckets=BUCKETS, registry=ours)
    slow = Histogram("gap_seconds", "Gaps.", buckets=BUCKETS, registry=theirs)
    for seconds in observed:
        fast.observe(seconds)
        slow.observe(seconds)
    said = [line for line in generate_latest(theirs).splitlines() if b"_created" not in line]
    assert generate_latest(ours).splitlines() == said
