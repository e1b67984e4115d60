from pathlib import Path

import pytest
from pydantic import ValidationError

from protocol.errors import SettingsError
from protocol.process.settings import ProcessSettings, WorkerSettings, load, load_or_exit


def test_flags_win_over_environment_over_file_over_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "baton.toml"
    file.write_text('model = "from-file"\nmax-running = 3\nport = 1\nthreads = 1\n')
    monkeypatch.setenv("BATON_PORT", "2")
    monkeypatch.setenv("BATON_THREADS", "2")
    settings = load(WorkerSettings, ["--config", str(file), "--threads", "3"])

    assert settings.model == Path("from-file")
    assert (settings.max_running, settings.port, settings.threads) == (3, 2, 3)
    assert settings.block_tokens == 16


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["--model", "m", "--nope", "1"], "unknown setting: --nope 1"),
        (["--model", "m", "--port", "70000"], "port: '70000': input should be less than"),
        (["--model", "m", "--port", "x"], "port: 'x': input should be a valid integer"),
        ([], "model: required; give --model or BATON_MODEL"),
        (
            ["--model", "m", "--dtype", "int8"],
            "dtype: 'int8': input should be 'auto', 'bfloat16', 'float16' or 'float32'",
        ),
        (["--model", "m", "--redis", "localhost"], "redis: 'localhost': must start with redis://"),
        (
            ["--model", "m", "--redis", "redis://h:nope/0"],
            "redis: 'redis://h:nope/0': its port must",
        ),
        (["--model", "m", "--redis", "redis://:secret@h:x/0"], "redis: 'redis://h:x/0': its port"),
        (["--model", "m", "--cores", "a"], "cores: 'a': string should match"),
        (["--model", "m", "--config", "/nowhere"], "config: '/nowhere': "),
        (["--model", "m", "--config", "/dev/zero"], "config: '/dev/zero': must be a regular file"),
        (["--model", "m", "--kv-blocks", "99999999999999999"], "kv_blocks: '99999999999999999': "),
        (["--model", "m", "--kv-bytes", str(1 << 60)], "kv_bytes: "),
        (["--model", "m", "--max-running", str(1 << 60)], "max_running: "),
        (["--model", "m", "--max-waiting", str(1 << 60)], "max_waiting: "),
        (["--model", "m", "--token-budget", str(1 << 60)], "token_budget: "),
        (["--model", "m", "--threads", "100000"], "threads: '100000': "),
        (["--model", "m", "--cores", "0-9999999999"], "cores: '0-9999999999': "),
    ],
)
def test_a_wrong_setting_is_one_line_naming_field_value_and_rule(
    argv: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        load_or_exit(WorkerSettings, argv, prog="worker")
    written = capsys.readouterr().err
    assert exit_.value.code == 2
    assert written.startswith(f"worker: {line}")
    assert written.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"a=" + b"[" * 100_000, "nested too deep"),
        (b"#" * (2 << 20), "at most 1 MiB"),
        (b"a = '\xff'", "utf-8"),
    ],
)
def test_a_file_that_is_none_of_settings_is_refused(text: bytes, why: str, tmp_path: Path) -> None:
    file = tmp_path / "baton.toml"
    file.write_bytes(text)
    with pytest.raises(SettingsError, match=f"config: .*{why}"):
        load(ProcessSettings, ["--config", str(file)])


def test_an_unknown_key_in_the_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "baton.toml"
    file.write_text("nope = 1\n")
    with pytest.raises(SettingsError, match="unknown setting: nope"):
        load(ProcessSettings, ["--config", str(file)])


def test_a_variable_of_another_process_is_none_of_our_business(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BATON_TOKEN_BUDGET", "100")
    assert load(ProcessSettings, []) == ProcessSettings()


def test_every_process_refuses_what_cannot_be_a_redis() -> None:
    with pytest.raises(SettingsError, match="redis: 'localhost:6379': must start with redis://"):
        load(ProcessSettings, ["--redis", "localhost:6379"])


def test_a_variable_nobody_knows_is_refused_with_the_nearest_that_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BATON_TOKEN_BUGDET", "1")
    rule = "unknown setting: BATON_TOKEN_BUGDET; the nearest known is BATON_TOKEN_BUDGET"
    with pytest.raises(SettingsError, match=f"^{rule}$"):
        load(ProcessSettings, [])


def test_settings_cannot_be_changed_after_the_start() -> None:
    settings = ProcessSettings()
    with pytest.raises(ValidationError):
        settings.redis = "redis://elsewhere"  # type: ignore[misc]


def test_every_setting_says_what_it_is_for() -> None:
    assert [n for n, field in WorkerSettings.model_fields.items() if not field.description] == []
