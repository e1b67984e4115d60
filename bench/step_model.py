"""How well a worker foretells its steps: the fit of a real engine, on steps that it has not seen.

    python -m bench.step_model [--model DIR] [--steps 600]

Calibrates, then computes steps at random (chunks of prompts, decodes, both at once) on the model's
runner; each is foretold before it is told to the fit. Relative errors of seconds, so a machine that
others use adds its noise to them; the median says what a quiet one would.
"""

import argparse
import random
import time
from pathlib import Path

from bench.record import percentiles, record
from controlplane.checkout import shipped_model
from engine.batch import Chunk, SequenceId, StepInput
from engine.kvcache.allocator import BlockAllocator
from engine.kvcache.prefix_cache import PrefixCache
from engine.runner.calibration import calibrate, measured
from engine.runner.contract import Runner
from engine.speeds.step_fit import StepFit, predicted_s
from prefill_worker.settings import PrefillSettings
from protocol.messages import Sampling
from worker.serving import CALIBRATION_S, open_model

CONTEXT = 1500
GREEDY = Sampling(seed=0, max_tokens=1, temperature=0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=shipped_model())
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--steps", type=int, default=600)
    options = parser.parse_args()
    settings = PrefillSettings(model=options.model, dtype=options.dtype, device="cpu")
    assembly = open_model("prefill", settings).assembly
    runner, fit = assembly.runner, StepFit()
    cache = PrefixCache(
        BlockAllocator(runner.num_blocks, generations=[0] * runner.num_blocks),
        block_tokens=runner.layout.block_tokens, compat="", windows=assembly.windows,
    )  # fmt: skip
    began_s = time.monotonic()
    fit.calibrate(
        calibrate(
            runner, cache, limits=assembly.limits, within_s=CALIBRATION_S, clock=time.perf_counter
        )
    )
    calibration_s = time.monotonic() - began_s
    errors = _errors(fit, runner, num_steps=options.steps)
    record(
        "step_model",
        conditions={"model": options.model.name, "dtype": options.dtype, "steps": options.steps},
        results={
            "calibration_s": round(calibration_s, 3),
            "relative_error_first_100": percentiles(errors[:100]),
            "relative_error_last_half": percentiles(errors[len(errors) // 2 :]),
        },
    )


def _errors(fit: StepFit, runner: Runner, *, num_steps: int) -> list[float]:
    """Of each step, foretold by those before it."""
    chance, layout = random.Random(1), runner.layout
    num_rows = min(-(-2 * CONTEXT // layout.block_tokens), runner.num_blocks // layout.num_groups)
    table = list(range(num_rows * layout.num_groups))
    errors = []
    for _ in range(num_steps):
        step = measured(runner, _batch(chance, table), time.perf_counter)
        errors.append(abs(predicted_s(fit.model, step) / step.step_s - 1))
        fit.add_step(step)
    return errors


def _batch(chance: random.Random, table: list[int]) -> StepInput:
    kind = chance.choice(("chunk", "decodes", "decodes", "both"))
    chunks: list[Chunk] = []
    if kind != "chunk":
        chunks += [
            _chunk(f"d{index}", table, 1, chance.randrange(CONTEXT), sampling=GREEDY)
            for index in range(chance.randint(1, 32))
        ]
    if kind != "decodes":
        chunks.append(_chunk("p", table, chance.randint(2, 400), chance.randrange(CONTEXT)))
    return tuple(chunks)


def _chunk(
    name: str, table: list[int], length: int, start: int, *, sampling: Sampling | None = None
) -> Chunk:
    return Chunk(
        sequence=SequenceId(name), token_ids=[1] * length, start=start, block_table=table,
        sampling=sampling, prompt_ids=(), outputs=(), num_prompt=start + length,
    )  # fmt: skip


if __name__ == "__main__":
    main()
