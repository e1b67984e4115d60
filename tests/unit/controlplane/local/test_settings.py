from pathlib import Path

import pytest

from controlplane.local.settings import load_up
from protocol.errors import CheckpointError, SettingsError


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    (tmp_path / "config.json").write_text("{}")
    return str(tmp_path)


def test_flags_of_the_children_become_their_environment(checkpoint: str) -> None:
    flags = load_up(["--model", checkpoint, "--token-budget", "64", "--max-running=8"])
    assert flags.child_env == {"BATON_TOKEN_BUDGET": "64", "BATON_MAX_RUNNING": "8"}


def test_a_switch_of_the_children_can_be_turned_off(checkpoint: str) -> None:
    flags = load_up(["--model", checkpoint, "--no-allow-fallback", "--no-pin"])
    assert flags.child_env == {"BATON_ALLOW_FALLBACK": "false"}
    assert not flags.settings.pin


def test_a_file_may_speak_to_us_and_to_the_children(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "baton.toml"
    file.write_text("decode = 2\ntoken-budget = 64\nmax-running = 8\nallow_fallback = false\n")
    monkeypatch.setenv("BATON_CONFIG", str(file))
    monkeypatch.setenv("BATON_MAX_RUNNING", "9")
    flags = load_up(["--model", checkpoint, "--token-budget", "65"])
    assert flags.settings.decode == 2
    assert flags.child_env == {"BATON_TOKEN_BUDGET": "65", "BATON_ALLOW_FALLBACK": "False"}


def test_a_file_key_nobody_knows_is_refused_by_name(checkpoint: str, tmp_path: Path) -> None:
    file = tmp_path / "baton.toml"
    file.write_text("token_bugdet = 64\n")
    with pytest.raises(SettingsError, match="unknown setting: token_bugdet"):
        load_up(["--model", checkpoint, "--config", str(file)])


def test_a_redis_that_cannot_be_one_is_refused(checkpoint: str) -> None:
    with pytest.raises(SettingsError, match="redis: 'redis://h:nope/0': its port must be"):
        load_up(["--model", checkpoint, "--redis", "redis://h:nope/0"])


def test_flags_of_ours_stay_ours(checkpoint: str) -> None:
    flags = load_up(["--model", checkpoint, "--prefill", "0", "--verbose", "--decode", "3"])
    assert (flags.settings.prefill, flags.settings.decode, flags.settings.verbose) == (0, 3, True)
    assert flags.child_env == {}


def test_the_defaults_are_one_worker_of_each_role_on_loopback(checkpoint: str) -> None:
    settings = load_up(["--model", checkpoint]).settings
    assert (settings.prefill, settings.decode, settings.dtype) == (1, 1, "auto")
    assert (settings.host, settings.port, settings.redis) == ("127.0.0.1", 8000, "")


@pytest.mark.parametrize("flag", ["--no-such-thing", "--worker"])
def test_a_flag_nobody_knows_is_refused_by_name(checkpoint: str, flag: str) -> None:
    with pytest.raises(SettingsError, match=f"unknown setting: {flag}"):
        load_up(["--model", checkpoint, flag, "1"])


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere: no such folder"):
        load_up(["--model", str(tmp_path / "nowhere")])


def test_a_cluster_without_decode_workers_is_refused(checkpoint: str) -> None:
    with pytest.raises(SettingsError, match="decode: '0'"):
        load_up(["--model", checkpoint, "--decode", "0"])


def test_beside_a_keys_file_we_have_a_key_of_our_own(checkpoint: str) -> None:
    flags = load_up(["--model", checkpoint, "--keys-file", "keys.json"])
    assert flags.child_env["BATON_KEYS_FILE"] == "keys.json"
    assert len(flags.api_key) > 32 and flags.api_key == flags.child_env["BATON_API_KEY"]
    given = load_up(["--model", checkpoint, "--keys-file", "keys.json", "--api-key", "mine"])
    assert given.api_key == "mine"
