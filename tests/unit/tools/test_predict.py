"""The predicted step: its tables are those of the page, and follow from limits as they say."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tools.predict import limits
from tools.predict.__main__ import NOT_MEASURED, PAGE, main, read_kernels, tables, written
from tools.predict.measured import committed, read_measured
from tools.predict.model import Kernel, kernel_s, predicted, rate
from tools.predict.shape import LLAMA_8B, STEPS, Work, works

KERNEL = Kernel(registers=64, shared_bytes=0, num_warps=4, instructions=100, load_bytes=8_192)
PARTS = [
    "embedding", "norm", "qkv", "rope_store", "attention", "reduce_splits", "o", "gate_up",
    "gated", "down", "head", "sample", "host", "total",
]  # fmt: skip


def test_the_page_has_the_tables_that_the_tool_makes() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert written(text, tables(committed(LLAMA_8B))) == text, "run python -m tools.predict --write"


def test_a_step_has_every_part_in_order() -> None:
    for step in STEPS:
        assert [line.part for line in predicted(read_kernels(), LLAMA_8B, step)] == PARTS


def test_no_part_is_predicted_faster_than_its_limit() -> None:
    for step in STEPS:
        for line in predicted(read_kernels(), LLAMA_8B, step):
            assert line.predicted_ms >= line.limit_ms


def test_weights_and_kv_are_what_the_model_has() -> None:
    """The 8.03 billion parameters less the embedding and norms; 128 KiB of KV a token."""
    one = works(LLAMA_8B, STEPS[0])
    names = ("qkv", "o", "gate_up", "down", "head")
    weights = sum(one[name].flops * one[name].launches / 2 for name in names)
    assert weights == pytest.approx(7.504e9, rel=1e-3)
    cached = one["attention"].bytes * one["attention"].launches
    assert cached == pytest.approx(1_024 * 131_072, rel=5e-3)


def test_few_programs_move_bytes_at_the_rate_that_their_loads_under_way_allow() -> None:
    assert rate(KERNEL, 10) == 10 * 8_192 / limits.LATENCY_S
    assert rate(KERNEL, 1e6) == limits.COPY_BYTES_PER_S


def test_shared_memory_registers_and_warps_each_bound_the_programs_at_once() -> None:
    assert KERNEL.programs == 8
    assert replace(KERNEL, shared_bytes=100 << 10).programs == 2
    assert replace(KERNEL, registers=32).programs == 16
    assert replace(KERNEL, registers=32, num_warps=32).programs == 2


def test_instructions_can_be_what_a_kernel_waits_for() -> None:
    busy = replace(KERNEL, instructions=100_000)
    assert kernel_s(Work(bytes=1e6), busy, 1_000) > 2 * kernel_s(Work(bytes=1e6), KERNEL, 1_000)


def recorded(folder: Path, *entries: tuple[str, int, dict[str, object]]) -> Path:
    """As `bench.record` writes: part, layers of the shape, results."""
    lines = [
        {"conditions": {"part": part, "layers": layers, "hidden": 4_096}, "results": results}
        for part, layers, results in entries
    ]
    file = folder / "gpu.jsonl"
    file.write_text("\n".join(json.dumps(line) for line in lines))
    return file


def test_the_last_breakdown_of_a_step_counts_and_no_toy_s(tmp_path: Path) -> None:
    file = recorded(
        tmp_path, ("breakdown_decode_b32", 32, {"qkv": 0.9}), ("decode_b32", 32, {"step_ms": 1.0}),
        ("breakdown_decode_b32", 32, {"qkv": 0.5}), ("breakdown_decode_b32", 2, {"qkv": 0.1}),
        ("breakdown_prefill_2048", 32, {"qkv": 4.0}), ("breakdown_decode_b1", 32, {"failed": "x"}),
    )  # fmt: skip
    assert read_measured(file, LLAMA_8B) == {"32": {"qkv": 0.5}, "2048": {"qkv": 4.0}}


def test_a_record_without_a_breakdown_is_refused(tmp_path: Path) -> None:
    file = recorded(tmp_path, ("breakdown_decode_b1", 2, {"qkv": 0.5}))
    with pytest.raises(ValueError, match="no step broken down of 32 layers"):
        read_measured(file, LLAMA_8B)


def test_a_chunk_s_attention_takes_its_products_and_then_its_loop() -> None:
    kernels = read_kernels()
    twice = replace(
        kernels["attention_chunk"],
        loop_instructions=2 * kernels["attention_chunk"].loop_instructions,
    )
    (one,) = (line for line in predicted(kernels, LLAMA_8B, STEPS[3]) if line.part == "attention")
    slower = predicted({**kernels, "attention_chunk": twice}, LLAMA_8B, STEPS[3])
    (other,) = (line for line in slower if line.part == "attention")
    assert one.limit_ms < other.predicted_ms - one.predicted_ms < one.predicted_ms


def test_what_was_measured_fills_the_last_column(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = recorded(tmp_path, ("breakdown_decode_b1", 32, {"qkv": 0.5}))
    assert main(["--measured", str(file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.endswith("| 0.500 |") for line in lines if "| qkv |" in line].count(True) == 1
    assert any(NOT_MEASURED in line for line in lines)


def test_a_page_without_the_place_is_refused() -> None:
    with pytest.raises(ValueError, match="between which tables go"):
        written("no place", "tables")
