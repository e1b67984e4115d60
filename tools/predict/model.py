"""Predicts a part's time: the longest of moving its bytes, multiplying and issuing its
instructions, by as many programs as fit the chip at once, and the gap before it. Nothing here was
measured on a GPU."""

# Shapes: T tokens, R rows sampled, P parts of a row.

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tools.predict import limits
from tools.predict.shape import ModelShape, Step, Work, works


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """What compiling told of a kernel (`tests/support/kernel_facts.py`)."""

    registers: int
    shared_bytes: int
    num_warps: int
    instructions: int
    """Of the whole kernel: what a warp of a program without loops issues at most."""
    load_bytes: int
    """That a program has in flight: of a loop its copy groups under way, else its tile."""
    loop_instructions: int = 0
    """Of attention's, once for a tile of so many rows and keys."""
    tile_rows: int = 0
    tile_keys: int = 0

    @property
    def programs(self) -> int:
        """That a multiprocessor holds at once."""
        threads = 32 * self.num_warps
        by_registers = limits.REGISTERS // (-(-self.registers // 8) * 8 * threads)
        by_shared = limits.SHARED_BYTES // max(self.shared_bytes, 1)
        return min(limits.PROGRAMS, limits.WARPS // self.num_warps, by_registers, by_shared)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A part of a step; milliseconds of all its launches."""

    part: str
    launches: int
    mbytes: float
    gflops: float
    limit_ms: float
    predicted_ms: float


Kernels = Mapping[str, Kernel]
LINEARS = ("qkv", "o", "gate_up", "down", "head")
HOST_S = {1: 0.24e-3, 32: 0.37e-3, 256: 1.34e-3}
"""Of a captured step by its sequences, measured on another CPU; hidden while the GPU computes the
step before."""


def rate(kernel: Kernel, programs: float) -> float:
    """Bytes a second of so many programs: by what they have in flight, at most a copy's."""
    at_once = min(programs, limits.MULTIPROCESSORS * kernel.programs)
    return min(limits.COPY_BYTES_PER_S, at_once * kernel.load_bytes / limits.LATENCY_S)


def waves(tiles: float, at_once: int) -> float:
    """How much longer than with full waves; at least 1."""
    return math.ceil(tiles / at_once) * at_once / tiles


def linear_s(work: Work, rows: int, columns: int) -> float:
    """By cuBLAS. Few rows are bound by their weights and cut along their width (split-K)."""
    moving = work.bytes / (limits.COPY_BYTES_PER_S * limits.CUBLAS_BYTES_SHARE)
    high, wide = limits.CUBLAS_TILE
    tiles = math.ceil(rows / high) * math.ceil(columns / wide)
    full = waves(tiles, limits.MULTIPROCESSORS) if rows > high else 1.0
    multiplying = work.flops / (limits.MATRIX_FLOPS_PER_S * limits.CUBLAS_FLOPS_SHARE) * full
    return max(moving, multiplying)


def kernel_s(work: Work, kernel: Kernel, programs: int, *, loops: bool = False) -> float:
    """One launch. Without loops every warp issues all of its instructions once at most."""
    moving = work.bytes / rate(kernel, programs)
    issued = 0 if loops else programs * kernel.num_warps * kernel.instructions
    issuing = issued / (limits.MULTIPROCESSORS * limits.ISSUES * limits.CLOCK_HZ)
    return max(limits.LEAST_S, limits.LATENCY_S + max(moving, issuing))


def sample_s(kernels: Kernels, shape: ModelShape, step: Step) -> float:
    """Of rows with top_k and top_p: seven launches, three of which read the rows."""
    parts = -(-shape.vocab // 2_048)
    one_pass = Work(bytes=step.sequences * shape.vocab * 4)
    reading = ("sample_tops", "sample_weigh", "sample_pack")
    passes = sum(kernel_s(one_pass, kernels[name], step.sequences * parts) for name in reading)
    search = 2 * 10 * 0.4e-6  # ten scans of one tile for each of top_k and top_p; estimated
    return passes + 3 * limits.LEAST_S + search + 6 * limits.GAP_S


def attention_s(kernels: Kernels, shape: ModelShape, step: Step, work: Work) -> float:
    if step.is_decode:
        programs = step.sequences * -(-step.context // 512) * shape.kv_heads
        kernel = kernels["attention_decode"]
        per_head = step.sequences * math.ceil(step.context / kernel.tile_keys)
        return max(
            kernel_s(work, kernel, programs, loops=True), loop_s(kernel, per_head * shape.kv_heads)
        )
    kernel = kernels["attention_chunk"]
    tiles = work.flops / (4.0 * kernel.tile_rows * kernel.tile_keys * shape.head_dim)
    edges = 1 + kernel.tile_keys / step.tokens  # of tiles on the diagonal half is masked
    return edges * (loop_s(kernel, tiles) + work.flops / limits.MATRIX_FLOPS_PER_S)


def loop_s(kernel: Kernel, tiles: float) -> float:
    """Issuing attention's loop for so many tiles, spread over the chip."""
    issued = tiles * kernel.num_warps * kernel.loop_instructions
    return issued / (limits.MULTIPROCESSORS * limits.ISSUES * limits.CLOCK_HZ * limits.ISSUED_SHARE)


def part_s(name: str, kernels: Kernels, shape: ModelShape, step: Step, work: Work) -> float:
    """Seconds of one launch of a part, without the gap before it."""
    rows = step.tokens
    columns = {
        "qkv": (shape.heads + 2 * shape.kv_heads) * shape.head_dim, "o": shape.hidden,
        "gate_up": 2 * shape.mlp, "down": shape.hidden, "head": shape.vocab,
    }  # fmt: skip
    if name in LINEARS:
        return linear_s(work, step.sequences if name == "head" else rows, columns[name])
    if name == "attention":
        return attention_s(kernels, shape, step, work)
    if name == "sample":
        return sample_s(kernels, shape, step)
    if name == "embedding":
        return max(limits.LEAST_S, work.bytes / limits.COPY_BYTES_PER_S)
    tile = kernels["gated"].load_bytes
    programs = {
        "norm": rows, "rope_store": rows, "reduce_splits": rows * shape.heads,
        "gated": math.ceil(rows * 2 * shape.mlp * shape.itemsize / tile),
    }  # fmt: skip
    return kernel_s(work, kernels[name], programs[name], loops=name == "reduce_splits")


def predicted(kernels: Kernels, shape: ModelShape, step: Step) -> list[Line]:
    """Of each part, "host" (0: hidden) and "total", whose limit is the sum of its parts'."""
    lines = []
    for name, work in works(shape, step).items():
        least = max(
            work.bytes / limits.COPY_BYTES_PER_S, work.flops / limits.MATRIX_FLOPS_PER_S
        ) * (name in LINEARS or name == "attention")  # the rest could be fused away
        took = part_s(name, kernels, shape, step, work) + limits.GAP_S
        lines.append(
            Line(
                part=name, launches=work.launches, mbytes=work.bytes * work.launches / 1e6,
                gflops=work.flops * work.launches / 1e9, limit_ms=1e3 * least * work.launches,
                predicted_ms=1e3 * took * work.launches,
            )
        )  # fmt: skip
    device_ms = sum(line.predicted_ms for line in lines)
    waits_ms = max(0.0, 1e3 * HOST_S.get(step.sequences, 0.0) - device_ms)
    lines.append(
        Line(part="host", launches=0, mbytes=0, gflops=0, limit_ms=0, predicted_ms=waits_ms)
    )
    return [*lines, _total(lines)]


def own_linears_ms(lines: Sequence[Line]) -> float:
    """The step of few rows with our linears in place of cuBLAS's and the gate fused into them."""
    (total,) = (line for line in lines if line.part == "total")
    replaced = [line for line in lines if line.part in LINEARS]
    fused = sum(line.predicted_ms for line in lines if line.part == "gated")
    bytes_per_ms = limits.COPY_BYTES_PER_S * limits.OWN_BYTES_SHARE / 1e3
    for line in replaced:
        fused += line.predicted_ms - 1e6 * line.mbytes / bytes_per_ms
        fused -= 1e3 * limits.GAP_S * line.launches
    return total.predicted_ms - fused


def _total(lines: list[Line]) -> Line:
    return Line(
        part="total",
        launches=sum(line.launches for line in lines),
        mbytes=sum(line.mbytes for line in lines),
        gflops=sum(line.gflops for line in lines),
        limit_ms=sum(line.limit_ms for line in lines),
        predicted_ms=sum(line.predicted_ms for line in lines),
    )
