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
UNKNOWN: Capability = (0, 0)
STEP = "step", "decode"
"""The entry that is of no kernel alone."""
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
    early: bool = False
    """Whether a step's kernels begin before those ahead of them end (`bound.dependent`)."""

    @property
    def options(self) -> dict[str, int]:
        return {"num_warps": self.num_warps, "num_stages": self.num_stages, **FUSED}


def chosen(kernel: str, shape: str, device: torch.device, default: Launch) -> Launch:
    """What was measured for this kernel and shape class on such a device, else `default`."""
    return tuned_launches(capability(device)).get((kernel, shape), default)


def begins_early(device: torch.device) -> bool:
    """Whether that was measured to be faster on such a device."""
    return chosen(*STEP, device, Launch()).early


@cache
def capability(device: torch.device) -> Capability:
    """UNKNOWN of the interpreter."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else UNKNOWN


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


def attention_class(head_dim: int, group: int, *, decode: bool, dtype: torch.dtype) -> str:
    """`group` query heads share a KV head."""
    return f"{'decode' if decode else 'chunk'}-d{head_dim}-g{group}-{dtype_name(dtype)}"


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def attention_default(
    head_dim: int, group: int, *, decode: bool, windowed: bool = False, uniform: bool = False,
    itemsize: int, chip: Capability = UNKNOWN,
) -> Launch:  # fmt: skip
    """`group` query heads share a KV head; their rows must fit a tile. Found by compiling: wide
    tiles that spill nothing on any chip the tests name, and load ahead. Tiles of chunks are larger
    on a chip that is known to have room for them."""
    rows, padded_dim = max(16, power_of_two(group)), power_of_two(head_dim)
    if itemsize == 4:  # no tensor cores: products of float32 live in registers
        num_warps = 16 if padded_dim > 256 else 4 if rows <= 32 else 8
        block_n = 32 if padded_dim > 256 and decode else 16
        return Launch(block_m=rows, block_n=block_n, num_warps=num_warps, num_stages=1)
    padded = padded_dim != head_dim
    if chip >= (8, 0) and not (decode or windowed or padded) and padded_dim == 128:
        return Launch(block_m=128, block_n=128 if chip == (9, 0) else 64, num_warps=8, num_stages=3)
    deep = padded_dim > 256
    block_m = rows if decode else max(32 if deep else 64, rows)
    crowded = block_m >= 64 and (decode or windowed or padded)  # masks: registers
    # With 64 keys of 64 dims Triton 3.6.0 spills.
    narrow = padded_dim > 128 or crowded or uniform or (decode and padded_dim == 64)
    block_n = 16 if deep else 32 if narrow else 64
    roomy = block_m * padded_dim <= 64 * 128 and not uniform  # which has two sums of values
    num_warps, num_stages = 4 if roomy else 8, 2 if uniform else 3
    return Launch(block_m=block_m, block_n=block_n, num_warps=num_warps, num_stages=num_stages)


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


def as_stride(tensor: Tensor, dim: int) -> int:
    """Elements between neighbours; the last dim must be contiguous for every kernel here."""
    assert tensor.stride(-1) == 1 or tensor.shape[-1] == 1, "rows must be contiguous"
    return tensor.stride(dim)
