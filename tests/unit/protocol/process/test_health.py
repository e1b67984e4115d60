from pathlib import Path

from protocol.process.health import (
    ENGINE_STUCK_S,
    LOADING_SPINS_S,
    LOADING_STUCK_S,
    READS_BYTES,
    STUCK_S,
    Activity,
    Health,
    own_activity,
)


def test_a_worker_is_not_ready_while_it_loads_and_lives_all_the_same() -> None:
    health = Health(clock=lambda: 1e9)
    assert health.not_ready() == "loading"
    assert health.not_alive() is None


def test_a_worker_without_a_beat_for_long_is_neither_ready_nor_alive() -> None:
    now = 0.0
    health = Health(clock=lambda: now)
    health.note("ready")
    assert health.not_ready() is None
    now = STUCK_S + 1
    assert health.not_ready() == health.not_alive() == "no beat for 61 s"


def test_a_draining_worker_lives() -> None:
    health = Health(clock=lambda: 0.0)
    health.note("draining")
    assert health.not_ready() == "draining"
    assert health.not_alive() is None


def test_a_worker_whose_engine_is_at_one_step_for_long_is_neither_ready_nor_alive() -> None:
    """Its event loop beats all the same."""
    health = Health(clock=lambda: 0.0)
    health.note("ready", turn_s=ENGINE_STUCK_S)
    assert health.not_ready() is health.not_alive() is None
    health.note("ready", turn_s=ENGINE_STUCK_S + 1)
    assert health.not_ready() == health.not_alive() == "at one step for 301 s"


class Start:
    """A worker that loads, with a clock and a count of what it has done."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.done = Activity()
        self.health = Health(clock=lambda: self.now_s, activity=lambda: self.done)


def test_loading_lives_as_long_as_it_says_that_it_goes_on() -> None:
    start = Start()
    for _ in range(10):
        start.health.note_progress("load")
        start.now_s += LOADING_STUCK_S
        assert start.health.not_alive() is None
    start.now_s += 1
    assert start.health.not_alive() == "loading has not gone on for 301 s, at load"
    start.health.note_progress("warm")
    assert start.health.not_alive() is None


def test_loading_lives_as_long_as_it_reads() -> None:
    start = Start()
    start.health.note_progress("fetch")
    for _ in range(10):
        start.now_s += LOADING_STUCK_S
        start.done = Activity(start.done.num_bytes + READS_BYTES)
        assert start.health.not_alive() is None
    start.now_s += LOADING_STUCK_S + 1
    assert start.health.not_alive() is not None


def test_loading_may_compute_for_longer_than_it_may_wait() -> None:
    start = Start()
    start.health.note_progress("kernels")
    start.now_s = LOADING_STUCK_S + 1
    assert start.health.not_alive() is not None
    start.done = Activity(cpu_s=start.now_s)
    assert start.health.not_alive() is None
    start.now_s = LOADING_SPINS_S + 1
    start.done = Activity(cpu_s=start.now_s)
    assert start.health.not_alive() is not None


def test_what_has_not_begun_to_load_may_wait_for_ever() -> None:
    """For Redis."""
    start = Start()
    start.now_s = 1e9
    assert start.health.not_alive() is None


def test_what_a_process_reads_and_computes_is_counted(tmp_path: Path) -> None:
    before = own_activity()
    (tmp_path / "file").write_bytes(bytes(2 * READS_BYTES))
    assert len((tmp_path / "file").read_bytes()) == 2 * READS_BYTES
    assert own_activity().num_bytes - before.num_bytes >= 2 * READS_BYTES
    assert own_activity().cpu_s >= before.cpu_s > 0
