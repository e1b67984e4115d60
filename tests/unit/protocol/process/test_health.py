from protocol.process.health import ENGINE_STUCK_S, STUCK_S, Health


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
