"""The C of kvtransfer as a program of its own: built for any processor, or with sanitizers.

Cases go in and what became of each comes out; `Case.expected` says by other code what should have.
"""

import itertools
import os
import random
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import xxhash

from kvtransfer.native.copy import Span, word_sums_twin
from kvtransfer.native.library import KERNELS, OUTSIDE, SUM_NUMBERS, UNFIT
from kvtransfer.plan import Ranges
from kvtransfer.sum_kinds import SUM_KINDS, WORD_SUM, WORD_SUM_GRAIN_BYTES, XXH3, SumKind
from protocol.process.kernels.c_kernels import compiler

COPY, FLOW, JOB = range(3)
_DRIVER: Final = Path(__file__).with_suffix(".c")
_INCLUDED: Final = ("flow.c", "share.c")
_ARRAYS: Final = ("into", "origin", "sizes", "starts")
_HOSTILE: Final = (-(2**63), -(2**62), -64, -1, 2**31, 2**62, 2**63 - 64, 2**63 - 1)
_MOST_PIECES: Final = 4_096
_LINE: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    deed: int
    kind: SumKind
    copies: bool
    target_bytes: int
    source: bytes
    into: list[int]
    origin: list[int]
    sizes: list[int]
    starts: list[int]
    cut: int
    job_pieces: int
    batch: int
    stream_from: int = 0
    """Copies of so many bytes are stored past the cache."""
    is_exact: bool = True
    """What becomes of it is known: of a job that lies, only that it ends."""

    @property
    def num_pieces(self) -> int:
        return len(self.starts) - 1

    def packed(self) -> bytes:
        numbers = [
            *(self.deed, self.target_bytes, len(self.source), len(self.sizes), self.num_pieces),
            *(SUM_NUMBERS[self.kind], self.copies, self.cut, self.job_pieces),
            *(self.batch, self.stream_from),
            *(*self.into, *self.origin, *self.sizes, *self.starts),
        ]
        return np.array(numbers, np.int64).tobytes() + self.source

    def expected(self) -> tuple[int, list[int], bytes]:
        """The answer, the sums, the target."""
        target = bytearray(self.target_bytes)
        refused = self._why_refused()
        if refused:
            return refused, [0] * self.num_pieces, bytes(target)
        origins = [0, *itertools.accumulate(self.sizes)] if self.deed == FLOW else self.origin
        sums = []
        for first, last in itertools.pairwise(self.starts):
            piece = bytearray()
            for at in range(first, last):
                text = self.source[origins[at] : origins[at] + self.sizes[at]]
                piece += text
                if self.copies:
                    target[self.into[at] : self.into[at] + len(text)] = text
            sums.append(sum_of(bytes(piece), self.kind))
        return self.num_pieces if self.deed == JOB else 0, sums, bytes(target)

    def _why_refused(self) -> int:
        spans = [(self.into, self.target_bytes)] * (self.copies or self.deed == FLOW)
        spans += [(self.origin, len(self.source))] * (self.deed != FLOW)
        inside = all(
            offset >= 0 and size >= 0 and offset + size <= num_bytes
            for offsets, num_bytes in spans
            for offset, size in zip(offsets, self.sizes, strict=True)
        )
        inside = inside and self.starts == sorted(self.starts) and self.starts[0] == 0
        if not inside or self.starts[-1] != len(self.sizes):
            return OUTSIDE
        unfit = any(size % WORD_SUM_GRAIN_BYTES for size in self.sizes)
        return UNFIT if self.kind == WORD_SUM and unfit else 0


def sum_of(piece: bytes, kind: SumKind) -> int:
    """By xxhash, or by numpy."""
    if kind == XXH3:
        return xxhash.xxh3_64_intdigest(piece)
    words = np.frombuffer(piece + bytes(8), np.uint8)
    whole = Ranges(np.array([0]), np.array([len(piece)]), np.array([0, 1]))
    return int(word_sums_twin(Span(words.ctypes.data, len(piece)), whole)[0])


def cases(seed: int, num: int, *, hostile: bool) -> Iterator[Case]:
    """Copies, sums and flows of any size and alignment; hostile ones lie, and help with jobs."""
    rng = random.Random(seed)
    for _ in range(num):
        kind = rng.choice(SUM_KINDS)
        deed = rng.choice((COPY, COPY, FLOW, JOB) if hostile else (COPY, COPY, FLOW))
        one = _honest(rng, deed, XXH3 if deed == JOB else kind)
        yield _spoiled(rng, one) if hostile and rng.random() < 0.7 else one
    if hostile:
        yield from _lies()


def _lies() -> Iterator[Case]:
    """Every number of a small case exchanged for every hostile one."""
    for deed, name, lie in itertools.product((COPY, FLOW, JOB), _ARRAYS, _HOSTILE):
        one = Case(
            deed=deed, kind=XXH3, copies=True, target_bytes=300, source=bytes(300),
            into=[0, 100, 200], origin=[0, 100, 200], sizes=[100] * 3, starts=[0, 1, 2, 3],
            cut=70, job_pieces=3, batch=1, is_exact=deed != JOB,
        )  # fmt: skip
        for at in range(len(getattr(one, name))):
            numbers = list(getattr(one, name))
            numbers[at] = lie
            changed: dict[str, Any] = {name: numbers}
            yield replace(one, **changed)


def _honest(rng: random.Random, deed: int, kind: SumKind) -> Case:
    grain = WORD_SUM_GRAIN_BYTES if kind == WORD_SUM else 1
    most = rng.choice((20, 70, 300, 1_100, 5_000, 90_000))
    sizes = [rng.randint(0, most) // grain * grain for _ in range(rng.randint(1, 6))]
    sizes[0] += grain  # no frame is without bytes
    cuts = sorted(rng.randint(0, len(sizes)) for _ in range(rng.randint(0, 3)))
    if rng.random() < 0.5:  # whole lines: what can be stored past the cache
        sizes = [-(-size // _LINE) * _LINE for size in sizes]
    gaps = [rng.choice((0, 0, _LINE, _LINE, 1, 8, 24)) for _ in sizes]
    into = [at + sum(gaps[: i + 1]) for i, at in enumerate(itertools.accumulate([0, *sizes[:-1]]))]
    source = rng.randbytes(sum(sizes) + (0 if deed == FLOW else rng.randint(0, 70)))
    return Case(
        deed=deed, kind=kind, copies=deed != COPY or rng.random() < 0.7,
        target_bytes=into[-1] + sizes[-1], source=source, into=into,
        origin=[rng.randint(0, len(source) - size) for size in sizes], sizes=sizes,
        starts=[0, *cuts, len(sizes)], cut=rng.choice((1 + most // 50, 4_096, 1 << 16)),
        job_pieces=len(cuts) + 1, batch=rng.randint(1, 3),
        stream_from=rng.choice((0, 0, 1 << 18)),
    )  # fmt: skip


def _spoiled(rng: random.Random, one: Case) -> Case:
    """With one number of it exchanged."""
    name = rng.choice(_ARRAYS)
    numbers = list(getattr(one, name))
    at = rng.randrange(len(numbers))
    near = (numbers[at] + 1, len(one.source) + 1)
    if one.deed == FLOW and name in ("into", "sizes"):  # no overlap, and no more than there is
        near = (one.target_bytes + 1, -numbers[at] - 1)
    numbers[at] = rng.choice((*_HOSTILE, *near))
    job_pieces, batch = one.job_pieces, one.batch
    if one.deed == JOB and rng.random() < 0.3:
        job_pieces, batch = rng.choice(((_MOST_PIECES + 1, 1), (-1, 1), (job_pieces, 0)))
    changed: dict[str, Any] = {name: numbers}
    return replace(one, **changed, job_pieces=job_pieces, batch=batch, is_exact=one.deed != JOB)


def build(folder: Path, *flags: str, found: str | None = None) -> Path | None:
    """The program, by this machine's compiler or the one found; None where that cannot build any
    with these flags. Raises CalledProcessError."""
    found = found or compiler()
    assert found is not None
    program, nothing = folder / "sums_driver", folder / "nothing.c"
    nothing.write_text("int main(void) { return 0; }")
    command: list[str | Path] = [found, "-std=gnu11", *flags, "-o", program]
    if subprocess.run([*command, nothing], check=False, capture_output=True).returncode:
        return None
    sources = [path for path in KERNELS.sources() if path.name not in _INCLUDED]
    strict: list[str] = ["-Wall", "-Wextra", "-Werror", f"-I{KERNELS.folder}"]
    subprocess.run([*command, *strict, _DRIVER, *sources], check=True, timeout=120.0)
    return program


def play(command: Sequence[str | Path], played: Sequence[Case]) -> None:
    """Assert that each case goes as it should."""
    packed = b"".join(one.packed() for one in played)
    options = {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}
    done = subprocess.run(
        command, input=packed, capture_output=True, timeout=240.0, env={**os.environ, **options}
    )
    assert not done.returncode, done.stderr.decode()
    answers = done.stdout
    for number, one in enumerate(played):
        answer, sums, target = one.expected()
        size = 8 + 8 * len(sums) + len(target)
        got, answers = answers[:size], answers[size:]
        words = np.frombuffer(got[: 8 + 8 * len(sums)], np.uint64)
        if one.is_exact:
            assert int(words[:1].view(np.int64)[0]) == answer, number
            assert words[1:].tolist() == sums, number
            assert got[8 + 8 * len(sums) :] == target, number
    assert not answers
