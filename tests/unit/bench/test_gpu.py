"""The GPU benchmark without a GPU: its arithmetic, and that its parts run."""

import ast
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from support.gpu import ROOT
from support.host_device import HostDevice

from bench.gpu import attention, breakdown, forward, peers, plan
from bench.gpu import parts as bench
from bench.gpu.breakdown import Kernel
from bench.gpu.peers import Peer
from bench.gpu.shapes import LLAMA_8B, TOY, costs
from engine.ops.inputs import with_work
from engine.runner.gpu.device import Device
from engine.runner.gpu.opening import ops_for


def test_a_decode_step_of_8b_reads_fifteen_gigabytes_of_weights_and_128_kib_a_token() -> None:
    llama = costs(LLAMA_8B)
    assert llama.linear_parameters == 6_979_321_856 and llama.head_parameters == 525_336_576
    assert llama.kv_token_bytes == 128 << 10
    assert llama.decode_bytes(batch=0, context=0) == pytest.approx(15.0e9, rel=0.01)
    # 15.0 GB and 256 x 1,024 x 128 KiB = 34.4 GB are 49.4 GB, at 4.8 TB/s 10.3 ms a step.
    least_s = llama.decode_bytes(batch=256, context=1024) / 4.8e12
    assert least_s == pytest.approx(10.3e-3, rel=0.01)


def test_a_prefill_of_8b_multiplies_its_parameters_and_half_the_square_of_attention() -> None:
    # 2 x 6.98e9 x 2,048 of linears, 0.5 x 4 x 2,048^2 x 4,096 x 32 of attention: 29.7e12.
    rate = 2048 / (costs(LLAMA_8B).prefill_flops(2048) / 790e12)
    assert rate == pytest.approx(54_500, rel=0.02)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors here are tiny: a second thread would only wait for a core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def toy(tmp_path: Path) -> bench.Bench:
    return bench.Bench(plan.SMALL, HostDevice(), tmp_path, time.monotonic() + 60)


def test_every_part_of_ours_runs_on_the_host(
    toy: bench.Bench, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unprofiled(device: Device, work: Callable[[], None]) -> list[Kernel]:
        """The profiler takes seconds; `tools.first_gpu` runs it, toys too."""
        work()
        return [Kernel(name="norm_kernel", start_us=0.0, us=1.0)]

    monkeypatch.setattr(breakdown, "kernels_of", unprofiled)
    toy.part("limits", toy.limits)
    toy.engine()
    toy.attention()
    assert not toy.failures
    said = capsys.readouterr()
    told = dict(line.split(maxsplit=1) for line in said.err.splitlines())
    parts = [line.split()[0] for line in said.err.splitlines()]
    decodes = [f"decode_b{batch}" for batch in (1, 2, 4)]
    attentions = ["attention_decode", "attention_prefill"]
    filtered = [f"{decode}_filtered" for decode in decodes]
    ragged = ["decode_b1_ragged", "decode_b2_ragged"]
    steps = [*decodes, "prefill_64", *filtered, *ragged, "mixed_b2_16"]
    broken_down = [f"breakdown_{step}" for step in (*decodes, "prefill_64")]
    assert parts == ["limits", "start", *steps, *broken_down, *attentions]
    for name in broken_down:
        assert {"norm", "host", "total"} <= set(ast.literal_eval(told[name]))


def test_a_part_that_fails_is_told_at_the_end_and_the_others_go_on(toy: bench.Bench) -> None:
    def fails() -> dict[str, object]:
        raise RuntimeError("no memory")

    toy.part("one", fails)
    toy.part("two", dict)
    assert toy.failures == ["one: RuntimeError: no memory"]


def test_a_peer_that_answers_other_numbers_has_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    device = HostDevice()
    batch = attention.PagedBatch(
        TOY, batch=2, context=20, num_new=1, device=device, dtype="float32"
    )  # fmt: skip
    right = attention.sdpa(batch)
    monkeypatch.setattr(attention, "sdpa", lambda batch: lambda: right() + 1)
    ops = ops_for(device, dtype=torch.float32)
    results = attention.measure(batch, ops, times=1)
    assert str(results["sdpa"]["failed"]).startswith("its numbers differ by ")
    assert "ModuleNotFoundError" in str(results["flashinfer"]["failed"])


def test_a_peer_that_fails_or_is_late_is_a_result_with_its_reason(tmp_path: Path) -> None:
    peer = Peer(kind="static", batch=1, context=4, steps=4)
    missing = peers.run(peer, tmp_path / "none", device="cpu", dtype="float32", within_s=60)
    assert "none" in str(missing["failed"])
    late = peers.run(peer, tmp_path, device="cpu", dtype="float32", within_s=0.01)
    assert late == {"failed": "not done within 0 s"}


def test_peers_are_run_by_the_python_that_they_were_installed_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PEERS_PYTHON", "/bin/echo")
    peer = Peer(kind="static", batch=1, context=4, steps=4)
    with pytest.raises(json.JSONDecodeError, match="Expecting value"):
        peers.run(peer, tmp_path, device="cpu", dtype="float32", within_s=60)


def test_the_forward_that_is_checked_splits_a_decode_and_a_chunk_at_the_end_of_its_pool() -> None:
    place = forward.Place(device=HostDevice(), shape=TOY, pool_bytes=0)
    inputs = with_work(forward.far_inputs(place, pool_blocks=5_000), [None])
    work = inputs.work
    assert work is not None and work.has_decodes and work.chunk_splits > 1
    assert work.passes_G[0][0].joined
    assert int(inputs.tables_GSB.max()) == 4_999


def test_a_share_below_its_bar_is_told(toy: bench.Bench) -> None:
    toy.judge("decode_b1", {"share": 0.64})
    toy.judge("decode_b32", {"share": 0.65})
    toy.judge("paged", {"share": 0.1})
    toy.judge("prefill_2048", {"failed": "no memory"})
    assert toy.below == ["decode_b1: 0.64 of its limit, the bar is 0.65"]


def test_every_bar_is_of_a_part_that_is_measured() -> None:
    load = plan.REAL.load
    names = {f"decode_b{batch}" for batch in load.batches} | {f"prefill_{load.prompt}"}
    assert set(plan.BARS) <= names


def test_without_a_gpu_nothing_is_measured() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = bench_gpu()
    assert done.returncode == 1 and done.stdout.startswith("nothing measured: there is no GPU here")


def test_help_needs_nothing_but_the_repository() -> None:
    done = bench_gpu("--help")
    assert done.returncode == 0 and "--toy" in done.stdout


def bench_gpu(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Without the path that make sets."""
    return subprocess.run(
        [sys.executable, "-m", "bench.gpu", *arguments], cwd=ROOT, timeout=60,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True, text=True,
    )  # fmt: skip
