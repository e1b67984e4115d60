"""One kernel at one shape class: what is tried, what is kept, and the file that keeps it."""

import json
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import triton
from torch import Tensor

from engine.ops.triton.launch import Launch

DEVICE = "cuda"
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


def tried(subject: Subject, most: int | None) -> Sequence[Launch]:
    """All candidates, or so many of them from all over their range, the same every time."""
    if most is None or most >= len(subject.candidates):
        return subject.candidates
    return random.Random(subject.shape).sample(subject.candidates, most)


def tune(
    subjects: Iterable[Subject], measure: Measure, *, within_s: float, most: int | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Measured]:  # fmt: skip
    """The best of each subject, of at most so many candidates. Once the time is up, no further
    candidate is begun."""
    until = clock() + within_s
    for subject in subjects:
        if clock() >= until:
            return
        default_us, expected = measure(lambda subject=subject: subject.run(subject.default))  # type: ignore[misc]
        best, best_us = subject.default, default_us
        for candidate in tried(subject, most):
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


def compile_share(
    subjects: Iterable[Subject], measure: Measure, *, number: int, of: int, most: int | None = None
) -> int:
    """Runs every `of`-th candidate from `number` on once, so that Triton's cache has it when `tune`
    measures: its compiler takes seconds a candidate, of one core. Returns how many ran."""
    count = 0
    for subject in subjects:
        for candidate in tried(subject, most)[number::of]:
            with suppress(NoRoom):
                measure(lambda s=subject, c=candidate: s.run(c))  # type: ignore[misc]
                count += 1
    return count


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
    from triton.testing import do_bench

    _, result = once(call)
    median_ms = do_bench(call, warmup=10, rep=50, return_mode="median")
    return 1_000 * float(median_ms), result


def once(call: Callable[[], Tensor]) -> tuple[float, Tensor]:
    """The host's microseconds of one call, compiling included; of the interpreter all there are."""
    from triton.runtime.errors import OutOfResources, PTXASError

    started_s = time.perf_counter()
    try:
        result = call()
    except (OutOfResources, PTXASError) as error:
        raise NoRoom from error
    return 1e6 * (time.perf_counter() - started_s), result


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.bfloat16, device=DEVICE) / 4
