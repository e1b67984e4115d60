"""The engine's kernels beside their torch twins, without a GPU and, where there is one, on it.

Triton decides at import whether it interprets, so the comparisons run in processes of their own,
one for a group of checks; each check is a function by the same name in `support.step_checks`,
`.linear_checks`, `.attention_checks`, `.sampling_checks`, `.sampling_passes` or `.sampling_laws`,
and is reported by itself.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pytest
from support.gpu import ENVIRONMENT, why_no_gpu

from engine.models.families.table import FAMILIES
from tools.make_checkpoint import Shape, make_checkpoint

_WITHIN_S = 280
BETWEEN_THE_LINEARS = ("norms", "gates", "ropes", "alignments", "experts")
LINEARS = (
    "linears",
    "gated_linears",
    "a_norm_adds_the_parts_of_a_linear",
    "a_row_of_an_invariant_linear_depends_on_itself_alone",
    "a_head_answers_float32_where_it_is_told",
)
ATTENTION = (
    "attentions",
    "splits",
    "a_row_in_splits_depends_on_no_other",
    "uniform_rows_are_alike_in_decodes_and_chunks",
    "what_lies_beyond_the_context_is_never_read",
    "a_row_depends_neither_on_its_chunk_nor_on_the_batch",
    "rows_that_pad_a_batch_are_harmless",
    "a_row_that_sees_nothing_is_zero",
    "a_tile_that_is_wholly_masked_changes_nothing",
    "what_no_split_wrote_is_never_read",
    "damaged_keys_stay_in_their_sequence",
    "float16",
)
SAMPLING = (
    "tokens",
    "a_row_without_a_finite_logit_has_no_token",
    "masks_take_out_what_is_not_allowed",
    "penalties_are_those_of_the_twin",
)
SAMPLED = (
    "places_and_seeds_of_any_size",
    "ties",
    "a_token_depends_on_its_row_alone",
    "rows_at_the_ends_of_float32",
    "parts_and_room_decide_no_token",
)
INTERPRETED = ("few_passes", "any_row_by_any_rules")
"""Not on a GPU."""
LONG = (SAMPLED, INTERPRETED)


ALIKE = {"gemma", "olmo3", "exaone4", "smollm3", "seed_oss", "ministral", "ministral3"} | {
    "granitemoe", "granitemoeshared", "qwen2_vl_text", "qwen2_5_vl_text", "qwen3_vl_text",
    "glm", "glm4", "cohere2", "phimoe", "stablelm",
}  # fmt: skip
"""To the kernels each of these families is like another."""
GROWTH = {
    "rope_type": "default",
    "llama_4_scaling_beta": 0.5,
    "original_max_position_embeddings": 4,
}

GROUPS = (BETWEEN_THE_LINEARS, LINEARS, ATTENTION, SAMPLING, SAMPLED)
ON_A_GPU = (*(name for group in GROUPS for name in group), "bfloat16")
Reports = Callable[[tuple[str, ...]], dict[str, str]]


def run(
    variables: dict[str, str], module: str, *arguments: str, within_s: float = _WITHIN_S
) -> str:
    """What the process says on stdout, once it has ended well."""
    environment = {**ENVIRONMENT, "OMP_NUM_THREADS": "1", **variables}
    command = [sys.executable, "-m", f"support.{module}", *arguments]
    done = subprocess.run(
        command, env=environment, capture_output=True, timeout=within_s, check=False, text=True
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    return done.stdout


def reports(said: str) -> dict[str, str]:
    return dict(json.loads(line) for line in said.splitlines() if line.startswith("["))


@pytest.fixture(scope="module")
def interpreted() -> Reports:
    """Why each check of a group failed, or "": the first asked for runs the group."""
    return cache(lambda group: reports(run({"TRITON_INTERPRET": "1"}, "engine_kernels", *group)))


@pytest.fixture(scope="module")
def on_a_gpu() -> dict[str, str]:
    """The first time on a machine a hundred variants are compiled, side by side."""
    if why := why_no_gpu():
        pytest.skip(why)
    return side_by_side(ON_A_GPU, lambda name: run({}, "engine_kernels", name))


def side_by_side(names: Sequence[str], said_by: Callable[[str], str]) -> dict[str, str]:
    """Reports of all checks, each of a process of its own."""
    with ThreadPoolExecutor(max_workers=min(8, len(os.sched_getaffinity(0)))) as threads:
        return reports("".join(threads.map(said_by, names)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("group", "name"),
    [
        pytest.param(group, name, id=name, marks=[pytest.mark.long] if group in LONG else [])
        for group in (*GROUPS, INTERPRETED)
        for name in group
    ],
)
def test_the_kernels_do_what_their_twins_do(
    group: tuple[str, ...], name: str, interpreted: Reports
) -> None:
    why = interpreted(group)[name]
    assert not why, why


@pytest.mark.gpu
@pytest.mark.parametrize("name", ON_A_GPU)
def test_the_kernels_do_what_their_twins_do_on_a_gpu(name: str, on_a_gpu: dict[str, str]) -> None:
    assert not on_a_gpu[name], on_a_gpu[name]


def test_checks_that_run_side_by_side_are_each_reported() -> None:
    names = ("norms", "gates", "ropes")
    found = side_by_side(names, lambda name: f"noise\n{json.dumps([name, 'why ' + name])}\n")
    assert found == {name: f"why {name}" for name in names}


def test_every_check_is_run() -> None:
    folder = Path(__file__).parents[1] / "support"
    modules = (
        "step_checks", "linear_checks", "attention_checks", "sampling_checks", "sampling_passes",
    )  # fmt: skip
    source = "".join((folder / f"{module}.py").read_text() for module in modules)
    named = {*BETWEEN_THE_LINEARS, *LINEARS, *ATTENTION, *SAMPLING, *SAMPLED, "bfloat16"}
    assert source.count("\n@check\n") == len(named)
    assert all(f"\n@check\ndef {name}(" in source for name in named)


@pytest.mark.long
def test_whole_models_through_the_kernels_answer_as_through_torch(tmp_path: Path) -> None:
    """Every family that gives the kernels something to do that no other does, and one with a window
    shorter than a chunk."""
    shapes = {family: Shape(family=family) for family in FAMILIES if family not in ALIKE}
    shapes["windowed"] = Shape(family="mistral", window=6, head_dim=20)
    answer_alike(tmp_path, shapes)


@pytest.mark.slow
@pytest.mark.long
def test_families_of_the_same_kernels_answer_as_through_torch(tmp_path: Path) -> None:
    shapes = {family: Shape(family=family, head_dim=16) for family in sorted(ALIKE)}
    shapes["ministral3"] = Shape(family="ministral3", head_dim=16, rope=GROWTH)
    answer_alike(tmp_path, shapes)


def answer_alike(tmp_path: Path, shapes: Mapping[str, Shape]) -> None:
    for name, shape in shapes.items():
        make_checkpoint(tmp_path / name, shape)
    run({"TRITON_INTERPRET": "1"}, "kernel_models", *(str(tmp_path / name) for name in shapes))
