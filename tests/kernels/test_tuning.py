"""Tuning without a GPU: what is tried, kept, written and read back."""

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.ahead import recorded
from torch import Tensor

from engine.ops.choose import choose_ops
from engine.ops.contract import Norm
from engine.ops.triton import (
    attention,
    experts,
    gated,
    launch,
    linear,
    norm,
    reduce_splits,
    rope_store,
)
from engine.ops.triton.launch import Launch
from engine.sampling import triton_bracket, triton_plan, triton_sample
from tools.first_gpu import tune as first_hour
from tools.tune import __main__ as command
from tools.tune import subject as tuning
from tools.tune.attention import attention_subjects
from tools.tune.linears import CUBLAS, LINEARS, linears_subjects
from tools.tune.sample import sample_subjects
from tools.tune.subject import Measured, NoRoom, Subject, compile_share, tried, tune, written

DEFAULT, WRONG, FAST, LARGE, SLOW = (Launch(block_n=n, num_warps=4) for n in (16, 32, 64, 128, 256))
ROWS_TK = torch.empty(16, 64, device="meta")
NORM = Norm(weight_K=torch.empty(64, device="meta"), eps=1e-6)
TOOK_US = {DEFAULT: 9.0, WRONG: 1.0, FAST: 4.0, SLOW: 12.0}


def subject() -> Subject:
    def run(one: Launch) -> Tensor:
        if one == LARGE:
            raise NoRoom
        return torch.tensor([float(one == WRONG), TOOK_US[one]])

    return Subject(
        kernel="attention", shape="decode-d64", default=DEFAULT,
        candidates=[WRONG, LARGE, SLOW, FAST], run=run,
    )  # fmt: skip


def measure(call: Callable[[], Tensor]) -> tuple[float, Tensor]:
    wrong, took_us = call()
    return float(took_us), wrong


def test_the_fastest_candidate_with_the_right_result_wins() -> None:
    (best,) = tune([subject()], measure, within_s=10)
    assert best == Measured(
        kernel="attention", shape="decode-d64", launch=FAST, median_us=4.0, default_us=9.0
    )


def test_every_candidate_of_every_subject_can_be_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    """On meta tensors, the kernels themselves left out."""

    class Silent:
        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            assert all(count > 0 for count in grid)
            return lambda *args, **named: None

    for module, name in (
        (attention, "decode_kernel"), (attention, "chunk_kernel"),
        (reduce_splits, "reduce_splits_kernel"),
        (experts, "count_kernel"), (experts, "place_kernel"), (experts, "grouped_kernel"),
        (experts, "combine_kernel"),
        (norm, "norm_kernel"), (rope_store, "rope_store_kernel"), (gated, "gated_kernel"),
        (linear, "linear_kernel"), (linear, "sum_parts_kernel"),
        (triton_sample, "choose_kernel"), (triton_bracket, "tops_kernel"),
        (triton_bracket, "weigh_kernel"), (triton_plan, "plan_kernel"),
        (triton_plan, "narrow_kernel"), (triton_bracket, "pack_kernel"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, Silent())
    monkeypatch.setattr(tuning, "DEVICE", "meta")
    asked = command.parsed([])
    shapes = set()
    for kernel in command.KERNELS:
        for one in command.subjects_of(kernel, asked):
            assert {one.run(candidate).shape for candidate in one.candidates} == {
                one.run(one.default).shape
            }
            shapes.add((one.kernel, one.shape))
    assert shapes == {
        ("attention", "decode-d128-g4-bfloat16"),
        ("attention", "chunk-d128-g4-bfloat16"),
        ("experts", "few-e128-k2048-f768-bfloat16"),
        ("experts", "many-e128-k2048-f768-bfloat16"),
        ("sample", "any"),
        launch.STEP,
        *(
            ("linear", f"{kind}-m{rows}-n{out}-k{width}-bfloat16")
            for kind, out, width in LINEARS
            for rows in (16, 32)
        ),
    }


def test_a_linear_that_cublas_computes_faster_has_no_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "DEVICE", "meta")
    subjects = list(linears_subjects())
    best = [CUBLAS, subjects[1].candidates[0]]
    found = [
        Measured(kernel="linear", shape=one.shape, launch=two, median_us=1.0, default_us=2.0)
        for one, two in zip(subjects, best, strict=False)
    ]
    monkeypatch.setattr(command, "tune", lambda *_, **__: found)
    for name, answer in (("is_available", True), ("get_device_capability", (9, 0))):
        monkeypatch.setattr(torch.cuda, name, lambda answer=answer: answer)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    assert command.main(["--kernel", "linear", "--out", str(tmp_path)]) == 0
    assert launch.read_tuned(tmp_path / "sm_90.json") == {("linear", subjects[1].shape): best[1]}


def test_the_sampler_is_tried_with_parts_of_several_sizes() -> None:
    """Which decide no token (`tests/support/sampling_passes.py`)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning, "DEVICE", "meta")
        (one,) = sample_subjects(1_000)
    assert {1_024, triton_sample.DEFAULT.block_n, 4_096} <= {c.block_n for c in one.candidates}


def test_attention_is_tried_with_few_warps_and_with_deep_pipelines() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning, "DEVICE", "meta")
        for one in attention_subjects(32, 8, 128):
            tried = {(candidate.num_warps, candidate.num_stages) for candidate in one.candidates}
            assert tried == set(itertools.product((1, 2, 4, 8), (2, 3, 4, 5)))


def test_no_candidate_is_begun_once_the_time_is_up() -> None:
    ticks = iter(range(99))
    found = list(tune([subject(), subject()], measure, within_s=3, clock=lambda: next(ticks)))
    assert [one.launch for one in found] == [DEFAULT]


def test_processes_share_the_candidates_that_one_measures() -> None:
    """Each compiles its own, none of them twice; what the chip has no room for is passed over."""
    ran = list[Launch]()

    def compiled(call: Callable[[], Tensor]) -> tuple[float, Tensor]:
        took_us, result = measure(call)
        ran.append(next(one for one, us in TOOK_US.items() if us == took_us))
        return took_us, result

    shares = [compile_share([subject()], compiled, number=n, of=2) for n in (0, 1)]
    assert sum(shares) == 3 and set(ran) == {WRONG, SLOW, FAST}


def test_of_many_candidates_the_same_few_are_compiled_and_measured() -> None:
    one = replace(subject(), candidates=[Launch(block_n=n) for n in range(100)])
    few = tried(one, 10)
    assert len(set(few)) == 10 and few == tried(one, 10)
    assert max(launch.block_n for launch in few) > 50, "from all over the range"
    assert tried(one, None) == one.candidates == tried(one, 100)


def test_every_kernel_that_the_first_hour_tunes_is_known(tmp_path: Path) -> None:
    stage = first_hour.tune(tmp_path, toy=False)
    tuned = [part for wave in stage.waves for part in wave if "--kernel" in part.arguments]
    kernels = [part.arguments[part.arguments.index("--kernel") + 1] for part in tuned]
    assert {"attention", "linear", "sample"} <= set(kernels) <= set(command.KERNELS)


def test_what_is_written_is_launched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "tuned" / launch.file_name((9, 0))
    found = list(tune([subject()], measure, within_s=10))
    assert written(file, found, device="a GPU") == 1
    entry = json.loads(file.read_text())["entries"][0]
    assert entry["device"] == "a GPU" and entry["median_us"] == 4.0
    monkeypatch.setattr(launch, "TUNED", file.parent)
    monkeypatch.setattr(launch, "capability", lambda device: (9, 0))
    launch.tuned_launches.cache_clear()
    gpu = torch.device("cuda", 0)
    assert launch.chosen("attention", "decode-d64", gpu, DEFAULT) == FAST
    assert launch.chosen("attention", "decode-d128", gpu, DEFAULT) == DEFAULT
    launch.tuned_launches.cache_clear()


def test_kernels_begin_early_where_that_was_measured_to_be_faster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu, (kernel, shape) = torch.device("cuda", 0), launch.STEP
    one = Measured(
        kernel=kernel, shape=shape, launch=Launch(early=True), median_us=8.0, default_us=9.0
    )
    written(tmp_path / launch.file_name((9, 0)), [one], device="a GPU")
    monkeypatch.setattr(launch, "capability", lambda device: (9, 0))
    for folder, early in ((tmp_path / "none", False), (tmp_path, True)):
        monkeypatch.setattr(launch, "TUNED", folder)
        launch.tuned_launches.cache_clear()
        norm.bound_norm.cache_clear()
        ops = choose_ops(dtype=torch.bfloat16, device=gpu)
        launches = recorded(norm, "norm_kernel", lambda ops=ops: ops.norm(ROWS_TK, None, NORM))  # type: ignore[misc]
        assert [one.options.get("launch_pdl", False) for one in launches] == [early]
    launch.tuned_launches.cache_clear()
    norm.bound_norm.cache_clear()


def test_other_entries_of_the_file_stay(tmp_path: Path) -> None:
    file = tmp_path / "sm_90.json"
    one = Measured(kernel="sample", shape="any", launch=SLOW, median_us=2.0, default_us=2.0)
    written(file, [one], device="a GPU")
    written(file, tune([subject()], measure, within_s=10), device="a GPU")
    assert launch.read_tuned(file) == {("sample", "any"): SLOW, ("attention", "decode-d64"): FAST}


def test_nothing_that_was_never_measured_ships() -> None:
    for file in launch.TUNED.glob("*.json"):
        for entry in json.loads(file.read_text())["entries"]:
            assert entry["device"] and entry["median_us"] > 0


def test_without_a_gpu_tuning_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command.main(["--out", str(tmp_path)]) == 1
    assert "no NVIDIA GPU here" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
