"""How a worker's process begins."""

from pathlib import Path

import pytest

from decode_worker.settings import DecodeSettings
from prefill_worker.settings import PrefillSettings
from protocol.messages import Role
from protocol.process.settings import EXIT_BAD_SETTINGS, WorkerSettings
from worker import process


@pytest.mark.parametrize(
    ("role", "settings"), [("prefill", PrefillSettings), ("decode", DecodeSettings)]
)
def test_a_worker_says_that_its_gpu_is_missing_before_it_asks_for_redis(
    role: Role,
    settings: type[WorkerSettings],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("protocol.process.machine.num_gpus", lambda: 0)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(process, "configure_logging", lambda **_: None)
    flags = ["--model", str(tmp_path), "--redis", "redis://127.0.0.1:1", "--threads", "1"]
    exit_code = process.main(role, settings, [*flags, "--device", "cuda"], wiring="no.module")
    assert exit_code == EXIT_BAD_SETTINGS
    assert "device: 'cuda': NVIDIA's driver shows 0 GPUs here" in capsys.readouterr().err
