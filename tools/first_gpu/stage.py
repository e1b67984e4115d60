"""A stage: waves of parts within one time, and the table of what they said."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.row import Row, table
from tools.first_gpu.part import Outcome, Part, run_part

STAGE_S = 570.0
"""A machine is lent for ten minutes a command."""
LEAST_S = 5.0
"""No part is begun with less left: it would only be cut off."""
Run = Callable[..., Outcome]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    name: str
    waves: Sequence[Sequence[Part]]
    """The parts of a wave run side by side, the waves one after another."""


def run_stage(
    stage: Stage, out: Path, *, run: Run = run_part, clock: Callable[[], float] = time.monotonic,
    stage_s: float = STAGE_S,
) -> list[Outcome]:  # fmt: skip
    """What each part came to, in order; a wave's parts have what is left when it begins."""
    logs, until_s = out / "logs" / stage.name, clock() + stage_s
    logs.mkdir(parents=True, exist_ok=True)
    outcomes: list[Outcome] = []
    for wave in stage.waves:
        left_s = until_s - clock()
        within_s = left_s if left_s >= LEAST_S else 0.0
        with ThreadPoolExecutor(max_workers=len(wave)) as threads:
            done = threads.map(lambda part: run(part, logs=logs, within_s=within_s), wave)  # noqa: B023
            for outcome in done:
                outcomes.append(outcome)
                print(f"{stage.name} {outcome.part.name}: {outcome.took_s:.0f} s", flush=True)
    return outcomes


def rows_of(outcomes: Sequence[Outcome]) -> Iterator[Row]:
    """All that was told; of a part that failed without a row that says so, or told nothing, one
    that does."""
    for outcome in outcomes:
        yield from outcome.rows
        if outcome.failure and all(row.passed is not False for row in outcome.rows):
            yield Row(part=outcome.part.name, result=outcome.failure, passed=False)
        elif not outcome.rows and not outcome.failure:
            yield Row(part=outcome.part.name, result="told nothing", passed=False)


def write_table(stage: Stage, outcomes: Sequence[Outcome], out: Path) -> str:
    """The table, also as STAGE.txt and, with the seconds of each part, STAGE.json in `out`."""
    rows = list(rows_of(outcomes))
    text = table(rows)
    (out / f"{stage.name}.txt").write_text(text + "\n")
    took = {outcome.part.name: round(outcome.took_s, 1) for outcome in outcomes}
    kept = {"stage": stage.name, "took_s": took, "rows": [asdict(row) for row in rows]}
    (out / f"{stage.name}.json").write_text(json.dumps(kept, indent=1) + "\n")
    return text


def is_passed(outcomes: Sequence[Outcome]) -> bool:
    return all(row.passed is not False for row in rows_of(outcomes))
