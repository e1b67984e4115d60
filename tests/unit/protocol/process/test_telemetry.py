import io
import json
import logging
from collections.abc import Iterator

import pytest
from prometheus_client import generate_latest

from protocol.process.logs import LoadProgress, configure_logging, request_context
from protocol.process.metrics import Reasons, RouterMetrics, WorkerMetrics


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    written = io.StringIO()
    configure_logging(process="decode-0", stream=written)
    yield written
    root.handlers[:], root.level = handlers, level


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_log_line_is_an_event_with_its_fields_and_the_request(stream: io.StringIO) -> None:
    with request_context("r1"):
        logging.getLogger("a").info("placed", extra={"worker": "w", "why": "prefix"})
    logging.getLogger("a").warning("alone")

    placed, alone = lines(stream)
    placed.pop("time")
    assert placed == {
        "level": "info",
        "event": "placed",
        "process": "decode-0",
        "request": "r1",
        "worker": "w",
        "why": "prefix",
    }
    assert "request" not in alone


def test_what_json_cannot_hold_is_written_as_text(stream: io.StringIO) -> None:
    logging.getLogger("a").info("odd", extra={"thing": ValueError("x"), "key": {1, 2}})
    assert lines(stream)[0]["thing"] == "x"


def test_an_exception_is_in_the_line_it_belongs_to(stream: io.StringIO) -> None:
    try:
        raise ValueError("broken")
    except ValueError:
        logging.getLogger("a").exception("failed")
    assert "ValueError: broken" in str(lines(stream)[0]["error"])


def test_load_progress_always_reports_the_end(stream: io.StringIO) -> None:
    progress = LoadProgress(logging.getLogger("a"), interval_s=3600)
    for done in range(101):
        progress(done, 100)
    assert [line["done"] for line in lines(stream)] == [0, 100]


def test_every_metric_is_ours_by_name() -> None:
    for metrics in (WorkerMetrics(), RouterMetrics()):
        for family in metrics.registry.collect():
            assert family.name.startswith("baton_")
            assert family.documentation


def test_a_reason_as_a_label_has_no_numbers_and_there_are_only_so_many() -> None:
    reasons = Reasons()
    assert reasons.label("no stream to 10.0.0.7:4711 within 3.1 s") == "no stream to # within # s"
    labels = {reasons.label(f"reason {chr(97 + n % 26)}{'x' * (n // 26)}") for n in range(200)}
    assert len(labels) == Reasons.MAX_REASONS
    assert "other" in labels


def test_the_metrics_of_transfers_are_exported_by_workers() -> None:
    metrics = WorkerMetrics()
    metrics.transfer.transports.labels("fallback", "tcp", "shm", "another host").inc()
    text = generate_latest(metrics.registry).decode()
    assert (
        'baton_kv_transport_total{event="fallback",instead_of="shm",reason="another host",'
        'transport="tcp"} 1.0'
    ) in text
