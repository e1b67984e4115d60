import logging

import pytest

from protocol.process.metrics import WorkerMetrics
from worker.reported.start_phases import PHASES, StartPhases


def seconds(metrics: WorkerMetrics, phase: str) -> float | None:
    return metrics.registry.get_sample_value("baton_worker_start_seconds", {"phase": phase})


def test_each_phase_is_measured_and_told_when_the_worker_serves(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now_s, metrics = 0.0, WorkerMetrics()
    phases = StartPhases(metrics, clock=lambda: now_s)
    for phase in PHASES:
        phases.enter(phase)
        now_s += 1.5
    phases.enter("kernels")
    now_s += 0.5
    with caplog.at_level(logging.INFO):
        phases.end()
    assert [seconds(metrics, phase) for phase in PHASES] == [1.5, 1.5, 1.5, 2.0, 1.5]
    (told,) = caplog.records
    assert told.message == "started"
    assert told.__dict__["kernels_s"] == 2.0


def test_a_worker_that_has_begun_to_load_must_go_on() -> None:
    metrics = WorkerMetrics()
    phases = StartPhases(metrics)
    phases.enter("load")
    phases.note_bytes(1, 2)
    assert metrics.health.not_alive() is None
    assert metrics.health.not_ready() == "loading"
