"""Measures launch parameters on this GPU and writes them where `engine.ops.triton.launch` looks.

    python -m tools.tune_kernels --kernel attention --heads 32 --kv-heads 8 --head-dim 128

Needs an NVIDIA GPU that nobody else uses meanwhile. A candidate counts only when its result is
that of the default parameters; one that the chip has no room for is passed over. Entries of other
kernels and shapes in the file stay.

Not tuned: the size of attention's splits and when there are any (`SPLIT_TOKENS`, `FULL_PROGRAMS`),
for the order of a row's sums follows them; and the sampler's tile, for the tokens that top_p keeps
may follow it. Of the sampler only the warps vary, which the sum of one tile's masses may still
follow in its last bits.
"""

# Shapes: T tokens, S sequences, H query heads, G KV heads, D head dim, E experts, J experts of a
# token, K features, F of the MLP, R rows, V vocabulary.

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import torch
import triton
from torch import Tensor

from engine.ops.contract import HeadShape
from engine.ops.inputs import ForwardInputs
from engine.ops.triton import attention, experts, launch
from engine.ops.triton.launch import Launch
from engine.sampling import triton_sample as sample
from engine.sampling.rows import RowRules

DEVICE = "cuda"
KERNELS = ("attention", "experts", "sample")
BLOCK_TOKENS = 16
CONTEXT = 4_096
TOLERANCE = 2e-2
"""Of results in bfloat16, between launch parameters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """One kernel at one shape class, and what to try."""

    kernel: str
    shape: str
    default: Launch
    candidates: Sequence[Launch]
    run: Callable[[Launch], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    kernel: str
    shape: str
    launch: Launch
    median_us: float
    default_us: float


class NoRoom(Exception):
    """The chip has too little shared memory or too few registers for the candidate."""


Measure = Callable[[Callable[[], Tensor]], tuple[float, Tensor]]
"""Median microseconds of a call, and its result; raises NoRoom."""


def tune(
    subjects: Iterable[Subject], measure: Measure, *, within_s: float,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Measured]:  # fmt: skip
    """The best of each subject. Once the time is up, no further candidate is begun."""
    until = clock() + within_s
    for subject in subjects:
        if clock() >= until:
            return
        default_us, expected = measure(lambda subject=subject: subject.run(subject.default))  # type: ignore[misc]
        best, best_us = subject.default, default_us
        for candidate in subject.candidates:
            if clock() >= until:
                break
            try:
                took_us, got = measure(lambda s=subject, c=candidate: s.run(c))  # type: ignore[misc]
            except NoRoom:
                continue
            same = torch.allclose(got.float(), expected.float(), atol=TOLERANCE, rtol=TOLERANCE)
            if same and took_us < best_us:
                best, best_us = candidate, took_us
        yield Measured(
            kernel=subject.kernel, shape=subject.shape, launch=best,
            median_us=best_us, default_us=default_us,
        )  # fmt: skip


def written(file: Path, measured: Iterable[Measured], *, device: str) -> int:
    """Adds entries to `file`, each in place of one of its kernel and shape; how many."""
    entries: dict[tuple[str, str], dict[str, object]] = {}
    if file.exists():
        for entry in json.loads(file.read_text(encoding="utf-8"))["entries"]:
            entries[entry["kernel"], entry["shape"]] = entry
    count = 0
    for one in measured:
        entries[one.kernel, one.shape] = {
            **asdict(one), "device": device,
            "torch": str(torch.__version__), "triton": triton.__version__,
        }  # fmt: skip
        count += 1
    file.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"entries": [entries[key] for key in sorted(entries)]}, indent=2)
    file.write_text(text + "\n", encoding="utf-8")
    return count


def on_gpu(call: Callable[[], Tensor]) -> tuple[float, Tensor]:
    from triton.runtime.errors import OutOfResources
    from triton.testing import do_bench

    try:
        result = call()
        median_ms = do_bench(call, warmup=10, rep=50, return_mode="median")
    except OutOfResources as error:
        raise NoRoom from error
    return 1_000 * float(median_ms), result


# -- what is measured -------------------------------------------------------------------------


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.bfloat16, device=DEVICE) / 4


def attention_subjects(num_heads: int, num_kv_heads: int, head_dim: int) -> Iterator[Subject]:
    heads = HeadShape(
        num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim,
        scale=head_dim**-0.5, layer=0,
    )  # fmt: skip
    group = num_heads // num_kv_heads
    rows = max(16, launch.power_of_two(group))
    for decode, in_splits in ((True, False), (False, False), (False, True)):
        num_sequences, tokens_each = (32, 1) if decode else (2, 40) if in_splits else (2, 2_048)
        splits = CONTEXT // launch.SPLIT_TOKENS if in_splits else 1
        kind: dict[str, bool] = {"decode": decode, "in_splits": in_splits}
        q_THD = noise(num_sequences * tokens_each, num_heads, head_dim)
        inputs = _inputs(num_sequences, tokens_each)
        blocks = num_sequences * CONTEXT // BLOCK_TOKENS
        pool = noise(blocks, 2, num_kv_heads, BLOCK_TOKENS, head_dim)
        yield Subject(
            kernel="attention",
            shape=launch.attention_class(head_dim, group, **kind, dtype=torch.bfloat16),
            default=launch.attention_default(head_dim, group, **kind, itemsize=2),
            candidates=[
                Launch(block_m=m, block_n=n, num_warps=warps, num_stages=stages)
                for m, n, warps, stages in product(
                    (rows,) if decode else (32, 64) if in_splits else (64, 128),
                    (32, 64, 128), (4, 8), (2, 3, 4),
                )
                if m >= rows
            ],
            run=lambda one, q_THD=q_THD, pool=pool, inputs=inputs, splits=splits: (  # type: ignore[misc]
                attention.attention(q_THD, pool, inputs, heads, launch=one, splits=splits)
            ),
        )  # fmt: skip


def _inputs(num_sequences: int, tokens_each: int) -> ForwardInputs:
    num_blocks = CONTEXT // BLOCK_TOKENS
    order = torch.randperm(num_sequences * num_blocks, device=DEVICE, dtype=torch.int32)
    nothing = torch.empty(0, dtype=torch.int64, device=DEVICE)
    starts_S1 = torch.arange(num_sequences + 1, dtype=torch.int32, device=DEVICE) * tokens_each
    return ForwardInputs(
        token_ids_T=nothing,
        positions_T=nothing,
        slots_GT=nothing[None],
        starts_S1=starts_S1,
        ends_S=torch.full_like(starts_S1[1:], CONTEXT),
        tables_GSB=order.view(1, num_sequences, num_blocks),
        rows_R=nothing,
    )


def experts_subjects(num_experts: int, choices: int, width: int, hidden: int) -> Iterator[Subject]:
    weights = {
        "gate_up_ENK": noise(num_experts, 2 * hidden, width),
        "down_EKF": noise(num_experts, width, hidden),
    }
    for num_tokens in (32, 2_048):
        x_TK, scores_TE = noise(num_tokens, width), noise(num_tokens, num_experts)
        weights_TJ, ids_TJ = scores_TE.float().softmax(1).topk(choices)
        rows = ids_TJ.numel() / num_experts
        yield Subject(
            kernel="experts",
            shape=launch.experts_class(rows, num_experts, width, hidden, torch.bfloat16),
            default=launch.experts_default(rows, itemsize=2),
            candidates=[
                Launch(block_m=m, block_n=n, block_k=k, num_warps=warps, num_stages=stages)
                for m, n, k, warps, stages in product(
                    (16, 32) if rows <= launch.FEW_ROWS else (64, 128),
                    (64, 128), (64, 128), (4, 8), (2, 3, 4),
                )
            ],
            run=lambda one, x=x_TK, ids=ids_TJ, factors=weights_TJ: experts.GroupedExperts(  # type: ignore[misc]
                gate_up_bias_EN=None, down_bias_EK=None, activation="silu", launch=one, **weights
            )(x, ids, factors),
        )  # fmt: skip


def sample_subjects(vocab_size: int) -> Iterator[Subject]:
    num_rows = 32

    def column(value: float, dtype: torch.dtype) -> Tensor:
        return torch.full((num_rows,), value, dtype=dtype, device=DEVICE)

    rows = RowRules(
        temperature_R=column(0.8, torch.float32), top_k_R=column(50, torch.int32),
        top_p_R=column(0.95, torch.float32), min_p_R=column(0.0, torch.float32),
        seed_R=column(1, torch.int64), position_R=torch.arange(num_rows, device=DEVICE),
    )  # fmt: skip
    logits_RV = noise(num_rows, vocab_size).float() * 12
    yield Subject(
        kernel="sample",
        shape="any",
        default=sample.DEFAULT,
        candidates=[
            Launch(block_n=sample.DEFAULT.block_n, num_warps=warps) for warps in (4, 8, 16)
        ],
        run=lambda one: sample.sample_tokens(logits_RV, rows, launch=one),
    )


def subjects_of(kernel: str, asked: argparse.Namespace) -> Iterator[Subject]:
    match kernel:
        case "attention":
            return attention_subjects(asked.heads, asked.kv_heads, asked.head_dim)
        case "experts":
            return experts_subjects(asked.experts, asked.choices, asked.width, asked.hidden)
        case _:
            return sample_subjects(asked.vocab)


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--kernel", choices=KERNELS, action="append", help="default: all")
    for name, default in (
        ("heads", 32), ("kv-heads", 8), ("head-dim", 128), ("experts", 128), ("choices", 8),
        ("width", 2_048), ("hidden", 768), ("vocab", 151_936), ("seconds", 300),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default: {default}")
    parser.add_argument("--out", type=Path, default=launch.TUNED, help="folder of the files")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    asked = parsed(arguments)
    if not torch.cuda.is_available():
        print("tune_kernels: no NVIDIA GPU here, nothing can be measured", file=sys.stderr)
        return 1
    chosen = (one for name in asked.kernel or KERNELS for one in subjects_of(name, asked))
    file = asked.out / launch.file_name(torch.cuda.get_device_capability())
    device = torch.cuda.get_device_name()
    measured = list(tune(chosen, on_gpu, within_s=asked.seconds))
    for one in measured:
        print(f"{one.kernel} {one.shape}: {one.median_us:.1f} us, default {one.default_us:.1f} us")
    print(f"{written(file, measured, device=device)} entries to {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
