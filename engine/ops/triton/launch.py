"""How a kernel is launched on a chip: what was measured there, else what is safe anywhere.

`tools/tune` writes one file a device to `tuned/`; none ships yet (docs/operations.md,
GPUs). The defaults fit sm_80 without spills (`tests/kernels/test_engine_kernels_compiled.py`).
Counts that change with every batch are not specialised on: no request waits for a compiler.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

TUNED = Path(__file__).parent / "tuned"
Capability = tuple[int, int]
FUSED = {"enable_fp_fusion": True}
"""Multiply and add in one rounding; said in every launch, for Triton's default changes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """Tile sizes, and the warps and pipeline stages of a program. A kernel without a dimension
    leaves its block at 0."""

    block_m: int = 0
    block_n: int = 0
    block_k: int = 0
    num_warps: int = 4
    num_stages: int = 2
    splits: int = 1
    """Of K, in a linear."""

    @property
    def options(self) -> dict[str, int]:
        return {"num_warps": self.num_warps, "num_stages": self.num_stages, **FUSED}


def chosen(kernel: str, shape: str, device: torch.device, default: Launch) -> Launch:
    """What was measured for this kernel and shape class on such a device, else `default`."""
    return tuned_launches(capability(device)).get((kernel, shape), default)


def capability(device: torch.device) -> Capability:
    """(0, 0) of the interpreter."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)


@cache
def tuned_launches(chip: Capability) -> dict[tuple[str, str], Launch]:
    return read_tuned(TUNED / file_name(chip))


def file_name(chip: Capability) -> str:
    return f"sm_{chip[0]}{chip[1]}.json"


def read_tuned(file: Path) -> dict[tuple[str, str], Launch]:
    """Launches by (kernel, shape class); empty without the file."""
    if not file.exists():
        return {}
    entries: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["entries"]
    return {(entry["kernel"], entry["shape"]): Launch(**entry["launch"]) for entry in entries}


def attention_class(
    head_dim: int, group: int, *, decode: bool, in_splits: bool = False, dtype: torch.dtype
) -> str:
    """Decode has one class, in splits or not."""
    kind = "decode" if decode else "chunk-in-splits" if in_splits else "chunk"
    return f"{kind}-d{head_dim}-g{group}-{dtype_name(dtype)}"


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def attention_default(
    head_dim: int, group: int, *, decode: bool, in_splits: bool = False, windowed: bool = False,
    itemsize: int,
) -> Launch:  # fmt: skip
    """`group` query heads share a KV head; their rows must fit a tile. Found by compiling: wide
    tiles that spill nothing on any chip the tests name."""
    rows, padded_dim = max(16, power_of_two(group)), power_of_two(head_dim)
    if itemsize == 4:  # no tensor cores: products of float32 live in registers
        num_warps = 16 if padded_dim > 256 else 4 if rows <= 32 else 8
        return Launch(block_m=rows, block_n=16, num_warps=num_warps, num_stages=1)
    padded, in_splits = padded_dim != head_dim, in_splits and not decode
    deep = padded_dim > (128 if in_splits else 256)
    block_m = rows if decode else max(32 if deep else 64, rows)
    crowded = block_m >= 64 and (decode or in_splits or windowed or padded)  # masks: registers
    block_n = 16 if deep else 32 if padded_dim > 128 or crowded else 64
    roomy = block_m * padded_dim <= 64 * 128 and not (in_splits and padded)
    return Launch(block_m=block_m, block_n=block_n, num_warps=4 if roomy else 8, num_stages=2)


FEW_ROWS = 16
"""Rows of an expert up to which its tiles are the smallest."""


def experts_class(
    rows: float, num_experts: int, width: int, hidden: int, dtype: torch.dtype
) -> str:
    """`rows` of an expert on average, `hidden` features of its MLP."""
    kind = "few" if rows <= FEW_ROWS else "many"
    return f"{kind}-e{num_experts}-k{width}-f{hidden}-{dtype_name(dtype)}"


def experts_default(rows_per_expert: float, *, itemsize: int) -> Launch:
    if itemsize == 4:
        return Launch(block_m=16, block_n=32, block_k=32, num_warps=4, num_stages=1)
    block_m = 16 if rows_per_expert <= FEW_ROWS else 64
    return Launch(block_m=block_m, block_n=64, block_k=64, num_warps=4, num_stages=3)


def row_warps(width: int) -> int:
    """Warps of a program that holds a row of so many float32 in registers."""
    return 4 if width <= 2_048 else 8 if width <= 8_192 else 16


def power_of_two(number: int) -> int:
    """The smallest that is no smaller."""
    return 1 << max(0, number - 1).bit_length()


SPLIT_TOKENS = 256
"""Context of one split of attention: a fixed size, so that a row's splits, and with them the
order of its sums, depend on its own context only. Short, or one sequence of 1,024 tokens and 8 KV
heads would keep a dozen of a GPU's hundred multiprocessors busy."""
FULL_PROGRAMS = 256
"""So many programs keep a GPU busy without splits."""
SCRATCH_BYTES = 128 << 20
"""Most that the splits of a layer may leave for their reduction."""
SPLIT_PROGRAMS = 2_048
"""So many programs are launched over splits, however wide the tables: at short contexts nearly all
have nothing to do, at long ones each takes several."""


def num_splits(*, num_programs: int, row_bytes: int, capacity_tokens: int) -> int:
    """From shapes alone, so that a captured graph stays right: as many as the block tables have
    room for, or 1 where `num_programs` (query tiles x KV heads) are enough, or where so many
    rows, `row_bytes` in all, would fill the scratch."""
    splits = max(1, -(-capacity_tokens // SPLIT_TOKENS))
    if num_programs >= FULL_PROGRAMS or splits * row_bytes > SCRATCH_BYTES:
        return 1
    return splits


def split_programs(splits: int, *, num_programs: int) -> int:
    """Programs that share the splits of one tile and KV head, of which there are `num_programs`.
    Decides nothing about sums: each split is summed by itself."""
    return max(1, min(splits, SPLIT_PROGRAMS // num_programs))


def as_stride(tensor: Tensor, dim: int) -> int:
    """Elements between neighbours; the last dim must be contiguous for every kernel here."""
    assert tensor.stride(-1) == 1 or tensor.shape[-1] == 1, "rows must be contiguous"
    return tensor.stride(dim)
