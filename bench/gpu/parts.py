"""The parts of `python -m bench.gpu`, each recorded as soon as it is measured.

Shares are of limits measured in the same run: a decode step's of the device's copy bandwidth,
a prefill's of its matrix rate. On the host nothing is held to a bar, and nothing recorded unless
BENCH_RESULTS names a folder; where it does, each part also tells its row (`bench.row`).
"""

# A part is what is measured and recorded together.

import gc
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from bench.gpu import attention, breakdown, peers
from bench.gpu.clock import copy_bytes_per_s, matrix_flops_per_s
from bench.gpu.engine_side import FILTERED, EngineSide
from bench.gpu.peers import Peer
from bench.gpu.plan import BARS, Plan, Results
from bench.gpu.rows import row_of, rows_of_parts
from bench.gpu.shapes import Costs, costs, part_bytes, write_config
from bench.gpu.weights import RandomCheckpoint
from bench.record import is_folder_named, record
from bench.row import tell
from engine.checkpoint.load import load_model
from engine.models.model import DTYPES, Model
from engine.runner.gpu.device import Device
from engine.runner.gpu.opening import ops_for


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
    _took_ms: dict[str, float] = field(default_factory=dict)

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
        failed = False
        try:
            results = measure()
        except Exception as error:  # the other parts are still worth measuring
            results = {"failed": f"{type(error).__name__}: {error}"[:400]}
            failed = True
            self.failures.append(f"{name}: {results['failed']}")
        print(name, dict(results), file=sys.stderr)
        if self.is_gpu:
            self.judge(name, results)
        if is_folder_named():
            self._tell(name, results, failed=failed)
        if self.is_gpu or is_folder_named():
            record("gpu", conditions={"part": name, **self._conditions()}, results=results)

    def _tell(self, name: str, results: Results, *, failed: bool) -> None:
        step = name.removeprefix("breakdown_")
        if failed or step == name:
            tell(row_of(name, results, raised=failed))
            return
        for row in rows_of_parts(step, results, self._limits_ms(step)):
            tell(row)

    def _limits_ms(self, step: str) -> dict[str, float]:
        """Of the parts of a decode step; a prefill's are not told apart."""
        load = self.plan.load
        batch = next((one for one in load.batches if step == f"decode_b{one}"), None)
        if batch is None:
            return {}
        least = part_bytes(self.plan.shape, batch=batch, context=load.context)
        return {part: 1e3 * moved / self.copied_per_s for part, moved in least.items()}

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
            self._steps(made[0])
            self._breakdowns(made[0])
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
        from bench.gpu import hand_over  # needs `tests` on the path

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

    def _steps(self, side: EngineSide) -> None:
        load = self.plan.load
        for batch in load.batches:
            self._part_ms(
                f"decode_b{batch}",
                lambda b=batch: side.decode_step_s(b),  # type: ignore[misc]
                self._bytes_s(batch),
            )
        self._part_ms(f"prefill_{load.prompt}", side.prefill_s, self._flops_s(load.prompt))
        for batch in load.batches:
            self._part_ms(
                f"decode_b{batch}_filtered", lambda b=batch: side.decode_step_s(b, rule=FILTERED),  # type: ignore[misc]
                self._bytes_s(batch),
            )  # fmt: skip
        for batch in load.batches[:2]:
            self._part_ms(
                f"decode_b{batch}_ragged", lambda b=batch: side.decode_step_s(b, ragged=True),  # type: ignore[misc]
                self._ragged_s(batch),
            )  # fmt: skip
        batch = load.batches[1]
        least_s = self._bytes_s(batch) + self._flops_s(load.chunk)
        self._part_ms(f"mixed_b{batch}_{load.chunk}", lambda: side.mixed_step_s(batch), least_s)

    def _breakdowns(self, side: EngineSide) -> None:
        """Milliseconds of the kernels of a step by what they do, and what is left of the step."""
        load, times = self.plan.load, 4

        def told(name: str, work: Callable[[], None], times: int) -> None:
            self.part(f"breakdown_{name}", lambda: self._broken_down(name, work, times))

        for batch in load.batches:
            told(f"decode_b{batch}", side.decode(batch, times=times), times)
        told(f"prefill_{load.prompt}", side.prefill, 1)

    def _broken_down(self, name: str, work: Callable[[], None], times: int) -> dict[str, float]:
        kernels = breakdown.kernels_of(self.device, work)
        sums_ms = {part: us / 1e3 / times for part, us in breakdown.by_part(kernels).items()}
        total_ms = self._took_ms.get(name)
        kernels_ms = sum(sums_ms.values())
        rest = {} if total_ms is None else {"host": total_ms - kernels_ms, "total": total_ms}
        return {**sums_ms, "kernels": kernels_ms, "launched": len(kernels) / times, **rest}

    def _part_ms(self, name: str, taken_s: Callable[[], float], least_s: float) -> None:
        """A part that takes time, of which `least_s` is the limit."""

        def measure() -> Results:
            step_s = taken_s()
            self._took_ms[name] = 1e3 * step_s
            return {
                "step_ms": 1e3 * step_s, "limit_ms": 1e3 * least_s, "share": least_s / step_s,
                "bar": BARS.get(name) if self.is_gpu else None,
            }  # fmt: skip

        self.part(name, measure)

    def _peer(self, results: Mapping[str, float | str], peer: Peer) -> Results:
        step_s = results.get("step_s")
        if not isinstance(step_s, float):
            return results
        least_s = self._bytes_s(peer.batch, peer.context)
        return {**results, "step_ms": 1e3 * step_s, "share": least_s / step_s}

    def _bytes_s(self, batch: int, context: int | None = None) -> float:
        context = context or self.plan.load.context
        return self.costs.decode_bytes(batch=batch, context=context) / self.copied_per_s

    def _ragged_s(self, batch: int) -> float:
        load = self.plan.load
        moved = self.costs.ragged_bytes(batch=batch, context=load.context, long=load.long)
        return moved / self.copied_per_s

    def _flops_s(self, num_tokens: int) -> float:
        return self.costs.prefill_flops(num_tokens) / self.flops_per_s

    def _conditions(self) -> Results:
        shape = self.plan.shape
        return {
            "gpu": self.device.name, "dtype": self.plan.dtype, "layers": shape.layers,
            "hidden": shape.hidden, "context": self.plan.load.context,
            "cuda": torch.version.cuda,
        }  # fmt: skip
