"""The parts of `python -m bench.gpu`, each recorded as soon as it is measured.

Shares are of limits measured in the same run: a decode step's of the device's copy bandwidth,
a prefill's of its matrix rate. On the host nothing is recorded, nor held to a bar.
"""

# A part is what is measured and recorded together.

import gc
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from bench.gpu import attention, peers
from bench.gpu.clock import copy_bytes_per_s, matrix_flops_per_s
from bench.gpu.engine_side import EngineSide, Load
from bench.gpu.peers import Peer
from bench.gpu.shapes import LLAMA_8B, TOY, Costs, costs, write_config
from bench.gpu.weights import RandomCheckpoint
from bench.record import record
from engine.checkpoint.load import load_model
from engine.models.model import DTYPES, Dtype, Model
from engine.runner.gpu.device import Device
from engine.runner.gpu.opening import ops_for
from tools.make_checkpoint import Shape

BARS = {"decode_b1": 0.65, "decode_b32": 0.65, "decode_b256": 0.60, "prefill_2048": 0.60}
"""Least shares of the limits."""
Results = Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    shape: Shape
    load: Load
    peers: tuple[Peer, ...]
    copy_bytes: int
    matrix_size: int

    @property
    def dtype(self) -> Dtype:
        return "bfloat16" if self.shape.dtype == "bfloat16" else "float32"


REAL = Plan(
    shape=LLAMA_8B,
    load=Load(batches=(1, 32, 256), context=1024, prompt=2048, num_steps=16),
    peers=(
        Peer(kind="static", batch=1, context=1024, steps=32),
        Peer(kind="static", batch=32, context=1024, steps=32),
        Peer(kind="paged", batch=32, context=1024, steps=32),
    ),
    copy_bytes=2 << 30,
    matrix_size=8192,
)
SMALL = Plan(
    shape=TOY,
    load=Load(batches=(1, 2, 4), context=40, prompt=64, num_steps=2),
    peers=(
        Peer(kind="static", batch=1, context=24, steps=6),
        Peer(kind="paged", batch=2, context=24, steps=6),
    ),
    copy_bytes=1 << 20,
    matrix_size=128,
)


@dataclass
class Bench:
    plan: Plan
    device: Device
    directory: Path
    """Holds the shape's config.json."""
    ends_at_s: float
    failures: list[str] = field(default_factory=list)
    below: list[str] = field(default_factory=list)
    """Parts whose share is less than their bar."""
    copied_per_s: float = 0.0
    flops_per_s: float = 0.0

    @property
    def is_gpu(self) -> bool:
        return self.device.where.type == "cuda"

    @property
    def costs(self) -> Costs:
        return costs(self.plan.shape)

    @property
    def left_s(self) -> float:
        return self.ends_at_s - time.monotonic()

    def part(self, name: str, measure: Callable[[], Results]) -> None:
        """Measures, judges and records; what failed or is below its bar is told at the end."""
        try:
            results = measure()
        except Exception as error:  # the other parts are still worth measuring
            results = {"failed": f"{type(error).__name__}: {error}"[:400]}
            self.failures.append(f"{name}: {results['failed']}")
        print(name, dict(results), file=sys.stderr)
        if self.is_gpu:
            self.judge(name, results)
            record("gpu", conditions={"part": name, **self._conditions()}, results=results)

    def judge(self, name: str, results: Results) -> None:
        share, bar = results.get("share"), BARS.get(name)
        if bar is not None and isinstance(share, float) and share < bar:
            self.below.append(f"{name}: {share:.2f} of its limit, the bar is {bar:.2f}")

    def limits(self) -> Results:
        plan = self.plan
        self.copied_per_s = copy_bytes_per_s(self.device, num_bytes=plan.copy_bytes)
        self.flops_per_s = matrix_flops_per_s(
            self.device, size=plan.matrix_size, dtype=DTYPES[plan.dtype]
        )
        return {
            "copy_gb_per_s": self.copied_per_s / 1e9,
            "matrix_tflop_per_s": self.flops_per_s / 1e12,
        }

    def model(self) -> Model:
        plan, where = self.plan, self.device.where
        config = write_config(plan.shape, self.directory)
        return load_model(
            self.directory, dtype=plan.dtype, device=where,
            ops=ops_for(self.device, dtype=DTYPES[plan.dtype]),
            checkpoint=RandomCheckpoint(plan.shape, config, where),
        )  # fmt: skip

    def engine(self) -> None:
        """Decode and prefill; the model's memory is given back afterwards."""
        made: list[EngineSide] = []

        def start() -> Results:
            started_s = time.monotonic()
            side = EngineSide(
                self.model(), self.plan.load, device=self.device, dtype=self.plan.dtype
            )
            made.append(side)
            return {
                "ops": ops_for(self.device, dtype=DTYPES[self.plan.dtype]).name,
                "captured": side.runner.captured_sizes,
                "graph_mb": side.graph_bytes / 1e6,
                "start_s": time.monotonic() - started_s,
            }

        self.part("start", start)
        if made:
            for batch in self.plan.load.batches:
                self.part(f"decode_b{batch}", lambda batch=batch: self._decode(made[0], batch))  # type: ignore[misc]
            self.part(f"prefill_{self.plan.load.prompt}", lambda: self._prefill(made[0]))
        made.clear()
        gc.collect()
        self.device.free_bytes()  # the workers and the peers need what our allocator keeps

    def attention(self) -> None:
        """Decode of the middle batch, and one prompt."""
        load = self.plan.load
        decode = {"batch": load.batches[1], "context": load.context, "num_new": 1}
        prefill = {"batch": 1, "context": load.prompt, "num_new": load.prompt}
        self.part("attention_decode", lambda: self._attention(**decode))
        self.part("attention_prefill", lambda: self._attention(**prefill))

    def peers(self) -> None:
        self.device.free_bytes()
        for peer in self.plan.peers:
            within_s = min(150.0, self.left_s - 60)
            if within_s < 20:
                self.part(peer.name, lambda: {"skipped": "no time left"})
                continue
            results = peers.run(
                peer, self.directory, device=str(self.device.where), dtype=self.plan.dtype,
                within_s=within_s,
            )  # fmt: skip
            self.part(peer.name, lambda results=results, peer=peer: self._peer(results, peer))  # type: ignore[misc]

    def hand_over(self) -> Results:
        from bench.gpu import hand_over  # needs `tests` on the path, as `make gpu-bench` has it

        results = hand_over.measure("cuda" if self.is_gpu else "cpu")
        assert results["correct"], results
        return results

    def _attention(self, *, batch: int, context: int, num_new: int) -> Results:
        paged = attention.PagedBatch(
            self.plan.shape, batch=batch, context=context, num_new=num_new, device=self.device,
            dtype=self.plan.dtype,
        )  # fmt: skip
        ops = ops_for(self.device, dtype=DTYPES[self.plan.dtype])
        times = 20 if self.is_gpu else 2
        return {"batch": batch, "context": context, **attention.measure(paged, ops, times=times)}

    def _decode(self, side: EngineSide, batch: int) -> Results:
        step_s = side.decode_step_s(batch)
        least_s = self._least_decode_s(batch)
        return {
            "step_ms": 1e3 * step_s, "limit_ms": 1e3 * least_s, "share": least_s / step_s,
            "bar": BARS.get(f"decode_b{batch}"), "tokens_per_s": batch / step_s,
        }  # fmt: skip

    def _prefill(self, side: EngineSide) -> Results:
        num_tokens, taken_s = self.plan.load.prompt, side.prefill_s()
        least_s = self.costs.prefill_flops(num_tokens) / self.flops_per_s
        return {
            "prefill_ms": 1e3 * taken_s, "limit_ms": 1e3 * least_s, "share": least_s / taken_s,
            "bar": BARS.get(f"prefill_{num_tokens}"), "tokens_per_s": num_tokens / taken_s,
        }  # fmt: skip

    def _peer(self, results: Mapping[str, float | str], peer: Peer) -> Results:
        step_s = results.get("step_s")
        if not isinstance(step_s, float):
            return results
        return {**results, "share": self._least_decode_s(peer.batch, peer.context) / step_s}

    def _least_decode_s(self, batch: int, context: int | None = None) -> float:
        context = context or self.plan.load.context
        return self.costs.decode_bytes(batch=batch, context=context) / self.copied_per_s

    def _conditions(self) -> Results:
        shape = self.plan.shape
        return {
            "gpu": self.device.name, "dtype": self.plan.dtype, "layers": shape.layers,
            "hidden": shape.hidden, "context": self.plan.load.context,
            "cuda": torch.version.cuda,
        }  # fmt: skip
