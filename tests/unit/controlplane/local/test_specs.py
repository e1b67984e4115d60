from pathlib import Path

import pytest

from controlplane.local.child import ChildSpec
from controlplane.local.settings import ONE_WORKER_ONLY, UpSettings, load_up
from controlplane.local.specs import gpu_share, router_spec, worker_specs
from protocol.errors import SettingsError
from protocol.store.address import RedisAddress

REDIS = RedisAddress(url="unix:///r")


def _settings(**given: object) -> UpSettings:
    return UpSettings.model_validate({"model": Path("model"), **given})


def _specs(settings: UpSettings, *, cores: tuple[int, ...] = (0, 1, 2, 3)) -> list[ChildSpec]:
    return worker_specs(settings, redis=REDIS, cores=cores, metrics_ports=range(9400, 9410), env={})


def _flag(spec: ChildSpec, name: str) -> str:
    return spec.command[spec.command.index(name) + 1]


def test_each_role_runs_its_own_module_under_a_stable_name() -> None:
    specs = _specs(_settings(prefill=1, decode=2))
    assert [spec.name for spec in specs] == ["prefill-0", "decode-0", "decode-1"]
    modules = [spec.command[2] for spec in specs]
    assert modules == ["prefill_worker", "decode_worker", "decode_worker"]
    assert [_flag(spec, "--worker") for spec in specs] == [spec.name for spec in specs]


def test_the_cores_are_divided_among_the_workers() -> None:
    (spec, _) = _specs(_settings())  # one of four is left to the router
    assert _flag(spec, "--threads") == "1"
    assert spec.env["OMP_NUM_THREADS"] == "1"


def test_threads_that_are_given_are_taken() -> None:
    assert _flag(_specs(_settings(threads=3))[0], "--threads") == "3"


def test_pinned_workers_have_a_core_and_a_thread_each() -> None:
    specs = _specs(_settings(pin=True), cores=(5, 6))
    assert [_flag(spec, "--cores") for spec in specs] == ["5", "6"]
    assert {_flag(spec, "--threads") for spec in specs} == {"1"}


def test_only_the_router_listens_where_clients_come_from() -> None:
    settings = _settings(host="0.0.0.0")
    router = router_spec(settings, redis=REDIS, port=8080, env={})
    assert (_flag(router, "--host"), _flag(router, "--port")) == ("0.0.0.0", "8080")
    assert {_flag(spec, "--host") for spec in _specs(settings)} == {"127.0.0.1"}


def test_a_router_lingers_as_it_is_told_which_is_not_at_all_unless_told() -> None:
    for flags, linger_s in (([], 0.0), (["--linger-s", "7"], 7.0)):
        router = router_spec(load_up(flags).settings, redis=REDIS, port=8080, env={})
        assert float(_flag(router, "--linger-s")) == linger_s


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (("--pin", "--threads", "2"), "threads: 2: with pin"),
        (("--pin", "--cores", "0-1"), "cores: '0-1': with pin"),
    ],
)
def test_what_pinning_would_overrule_is_refused(flags: tuple[str, ...], why: str) -> None:
    with pytest.raises(SettingsError, match=why):
        load_up(flags)


def test_no_flag_of_a_child_beats_one_that_the_supervisor_hands_on() -> None:
    """Flags win over the environment, by which children are told what only they know."""
    settings = _settings(pin=True, kv_blocks=9, served_name="m")
    specs = [*_specs(settings), router_spec(settings, redis=REDIS, port=8080, env={})]
    given = {word[2:].replace("-", "_") for s in specs for word in s.command if word[:2] == "--"}
    assert given - {"cores"} <= UpSettings.model_fields.keys() | ONE_WORKER_ONLY


@pytest.mark.parametrize("name", ["--served-name", "--kv-blocks", "--cores"])
def test_what_was_not_asked_for_is_left_to_the_children(name: str) -> None:
    assert all(name not in spec.command for spec in _specs(_settings()))


def test_no_child_reads_the_file_of_the_supervisor() -> None:
    settings = _settings()
    specs = [*_specs(settings), router_spec(settings, redis=REDIS, port=8080, env={})]
    assert all("BATON_CONFIG" in spec.not_inherited for spec in specs)


def test_workers_that_may_share_a_gpu_divide_its_memory_unless_told_otherwise() -> None:
    settings = _settings(prefill=2, decode=1)
    assert gpu_share(settings, {}) == {"BATON_KV_MEMORY_SHARE": "0.300"}
    assert gpu_share(settings, {"BATON_KV_MEMORY_SHARE": "0.5"}) == {}


def test_what_children_know_of_redis_stands_in_no_command_line() -> None:
    address = RedisAddress(
        url="rediss://h/1", username="me", password="s3cret", ca="/ca", prefix="mine:"
    )
    settings = _settings()
    workers = worker_specs(
        settings, redis=address, cores=(0, 1), metrics_ports=range(9400, 9410), env={}
    )
    for spec in (*workers, router_spec(settings, redis=address, port=8080, env={})):
        assert not any(word.startswith("--redis") for word in spec.command)
        assert "s3cret" not in " ".join(spec.command)
        told = {name: spec.env[name] for name in spec.env if name.startswith("BATON_REDIS")}
        assert told == {
            "BATON_REDIS": "rediss://h/1",
            "BATON_REDIS_USERNAME": "me",
            "BATON_REDIS_PASSWORD": "s3cret",
            "BATON_REDIS_CA": "/ca",
            "BATON_REDIS_PREFIX": "mine:",
        }


def test_nothing_of_another_redis_is_inherited() -> None:
    env = router_spec(_settings(), redis=REDIS, port=8080, env={}).env
    assert (env["BATON_REDIS_USERNAME"], env["BATON_REDIS_PASSWORD"]) == ("", "")


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("fd00::1", "::1"), ("::", "127.0.0.1")],
)
def test_workers_listen_in_the_family_of_the_api(host: str, loopback: str) -> None:
    assert {_flag(spec, "--host") for spec in _specs(_settings(host=host))} == {loopback}
