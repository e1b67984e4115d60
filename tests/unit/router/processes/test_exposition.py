from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from protocol.process.metrics import RouterMetrics
from router.processes.exposition import merged


def exposition(*, num_tokens: int, num_workers: int) -> bytes:
    """Of a process."""
    metrics = RouterMetrics()
    metrics.output_tokens.inc(num_tokens)
    metrics.endings.labels("stop").inc()
    metrics.first_token_s.observe(0.03)
    metrics.workers.labels(role="decode", state="ready").set(num_workers)
    return generate_latest(metrics.registry)


def samples(text: bytes, name: str) -> list[tuple[dict[str, str], float]]:
    families = text_string_to_metric_families(text.decode())
    return [(s.labels, s.value) for one in families for s in one.samples if s.name == name]


def of_two() -> bytes:
    own, other = (exposition(num_tokens=n, num_workers=n) for n in (5, 7))
    return merged({0: own, 1: other}, own=0, shared=RouterMetrics().shared_names)


def test_counters_of_each_process_are_apart() -> None:
    found = samples(of_two(), "baton_output_tokens_total")
    assert found == [({"process": "0"}, 5.0), ({"process": "1"}, 7.0)]


def test_labels_and_buckets_stay() -> None:
    assert samples(of_two(), "baton_endings_total") == [
        ({"ending": "stop", "process": "0"}, 1.0),
        ({"ending": "stop", "process": "1"}, 1.0),
    ]
    buckets = samples(of_two(), "baton_time_to_first_token_seconds_bucket")
    assert ({"le": "0.05", "process": "1"}, 1.0) in buckets
    assert ({"le": "0.025", "process": "1"}, 0.0) in buckets


def test_what_each_process_would_say_alike_comes_once_from_the_one_that_was_asked() -> None:
    found = samples(of_two(), "baton_workers")
    assert found == [({"role": "decode", "state": "ready"}, 5.0)]


def test_each_family_is_described_once() -> None:
    lines = of_two().decode().splitlines()
    kinds = [line for line in lines if line.startswith("# TYPE")]
    assert len(kinds) == len(set(kinds))
    assert "# TYPE baton_output_tokens_total counter" in kinds
