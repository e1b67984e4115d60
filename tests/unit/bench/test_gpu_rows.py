"""Where a step's time goes, and what a part says in a table."""

import re
from pathlib import Path

from bench.gpu.breakdown import LINEARS, OURS, Kernel, by_part, parts_of
from bench.gpu.rows import row_of, rows_of_parts
from bench.gpu.shapes import LLAMA_8B, costs, part_bytes

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
    step = ["gather", *LAYER, *LAYER, "norm_kernel", "gemm", "tops_kernel", "choose_kernel"]
    parts = ["embedding", *PARTS, *PARTS, "norm", "head", "sample", "sample"]
    assert parts_of(step) == parts
    assert parts_of(step * 2) == parts * 2, "the next step begins anew"


def test_every_kernel_of_the_engine_is_known_by_its_name() -> None:
    engine = Path(__file__).parents[3] / "engine"
    files = [*engine.glob("ops/triton/*.py"), *engine.glob("sampling/triton_*.py")]
    names = {name for file in files for name in re.findall(r"def (\w+_kernel)\(", file.read_text())}
    assert len(names) > 15
    assert {n for n in names if not any(word in n for word, _ in OURS)} == set(LINEARS)


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
