"""Where a step's time goes, and what a part says in a table."""

import re

from bench.gpu.breakdown import LINEARS, OURS, Kernel, by_part, parts_of
from bench.gpu.breakdown import PARTS as PARTS_OF_A_STEP
from bench.gpu.rows import row_of, rows_of_parts
from bench.gpu.shapes import LLAMA_8B, costs, part_bytes
from tools.predict.shape import STEPS, ModelShape, works
from tools.python_path import ROOT

LAYER = (
    "norm_kernel", "nvjet_tst_64x8", "rope_store_kernel", "decode_kernel",
    "reduce_splits_kernel", "nvjet_tst_64x8", "splitKreduce_kernel", "norm_kernel", "gemm",
    "gated_kernel", "gemm",
)  # fmt: skip
PARTS = [
    "norm", "qkv", "rope_store", "attention", "reduce_splits", "o", "o", "norm", "gate_up",
    "gated", "down",
]  # fmt: skip


def test_linears_are_told_apart_by_the_kernels_around_them() -> None:
    step = ["gather", *LAYER, *LAYER, "norm_kernel", "gemm", "fill", "tops_kernel", "choose_kernel"]
    parts = ["embedding", *PARTS, *PARTS, "norm", "head", "head", "sample", "sample"]
    assert parts_of(step) == parts
    assert parts_of(step * 2) == parts * 2, "the next step begins anew"


def test_a_kernel_of_ours_is_the_linear_that_its_neighbours_say() -> None:
    """Gate and up are multiplied in one, and the next norm adds the parts of down."""
    names = ["reduce_splits_kernel", "linear_kernel", "norm_kernel", "linear_kernel",
             "linear_kernel", "sum_parts_kernel", "norm_kernel"]  # fmt: skip
    assert parts_of(names)[1:6] == ["o", "norm", "gate_up", "down", "down"]
    assert parts_of(["norm_kernel", "gemm", "gemm", "norm_kernel"])[1:3] == ["mlp", "mlp"]


def test_penalties_and_masks_are_neither_head_nor_sampling() -> None:
    names = ["norm_kernel", "gemm", "penalise_kernel", "copy", "mask_kernel", "tops_kernel"]
    assert parts_of(names) == ["norm", "head", "penalties", "penalties", "mask", "sample"]


def test_every_kernel_of_the_engine_has_a_part() -> None:
    launched = {
        name
        for file in (ROOT / "engine").rglob("*.py")
        if "@triton.jit" in (text := file.read_text())
        for name in re.findall(r"^def (\w+_kernel)\(", text, re.MULTILINE)
    }
    assert len(launched) > 15
    known = {f"{name}_kernel" for name in OURS}
    assert launched == known | set(LINEARS)
    assert set(OURS.values()) <= set(PARTS_OF_A_STEP)


def test_every_part_that_is_predicted_can_be_measured() -> None:
    assert set(works(ModelShape(), STEPS[0])) <= set(PARTS_OF_A_STEP)


def test_a_prompt_attends_without_splits_and_experts_stand_for_an_mlp() -> None:
    names = ["norm_kernel", "gemm", "rope_store_kernel", "chunk_kernel", "gemm", "norm_kernel"]
    assert parts_of(names) == ["norm", "qkv", "rope_store", "attention", "o", "norm"]
    assert parts_of(["grouped_kernel", "who knows", "grouped_kernel"])[1] == "other"


def test_times_of_a_part_are_added_up_in_the_order_of_launches() -> None:
    kernels = [Kernel(name=name, start_us=float(n), us=2.0) for n, name in enumerate(LAYER)]
    assert by_part(kernels[::-1]) == {
        "norm": 4.0, "qkv": 2.0, "rope_store": 2.0, "attention": 2.0, "reduce_splits": 2.0,
        "o": 4.0, "gate_up": 2.0, "gated": 2.0, "other": 2.0,
    }  # fmt: skip


def test_a_share_below_its_bar_did_not_pass_and_one_without_a_bar_is_told() -> None:
    results = {"step_ms": 5.0, "limit_ms": 3.0, "share": 0.6}
    row = row_of("decode_b1", {**results, "bar": 0.65}, raised=True)
    assert (row.result, row.limit, row.share, row.passed) == ("5.000 ms", "3.000 ms", 0.6, False)
    assert row_of("decode_b1", {**results, "bar": 0.6}, raised=True).passed
    assert row_of("ragged", {**results, "bar": None}, raised=True).passed is None


def test_a_peer_that_is_not_installed_fails_nothing() -> None:
    results = {"failed": "ModuleNotFoundError: flashinfer"}
    assert row_of("flashinfer", results, raised=False).passed is None
    assert row_of("engine", results, raised=True).passed is False


def test_what_else_was_measured_is_a_line() -> None:
    row = row_of("attention", {"batch": 32, "ours": {"us": 41.256}}, raised=True)
    assert row.result == "batch 32, ours us 41.26"


def test_a_step_is_a_row_for_each_of_its_parts() -> None:
    results = {"qkv": 0.5, "norm": 0.1, "launched": 340.0, "total": 0.7}
    rows = list(rows_of_parts("decode_b1", results, {"qkv": 0.4}))
    assert [(row.part, row.limit, row.share) for row in rows] == [
        ("decode_b1: qkv", "0.400 ms", 0.8), ("decode_b1: norm", "", None),
        ("decode_b1: total", "", None),
    ]  # fmt: skip


def test_the_parts_of_a_step_read_all_that_the_step_reads() -> None:
    parts = part_bytes(LLAMA_8B, batch=32, context=1024)
    assert sum(parts.values()) == costs(LLAMA_8B).decode_bytes(batch=32, context=1024)


def test_a_hand_over_with_wrong_tokens_does_not_pass() -> None:
    assert row_of("hand_over", {"correct": False}, raised=False).passed is False
