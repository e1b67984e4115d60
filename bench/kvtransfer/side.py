"""One end of a pair, a process of its own: runs the cases it is given, in order.

    python -m bench.kvtransfer.side '{"mover": ..., "side": ..., "setting": ..., ...}'

Started by `bench.kvtransfer.pair`. The sink prints one JSON line a case, so that what was
measured before a hang is kept. A clock of both processes: CLOCK_MONOTONIC is one for the host.
"""

import importlib
import sys
import time
from typing import Final

import msgspec

from bench.kvtransfer.aside import Aside
from bench.kvtransfer.case import Case, Move, fill, move, num_stale, num_wrong, stamp
from bench.kvtransfer.catalogue import Mover
from bench.kvtransfer.mover import Place, Setting, Side, SinkEnd, SourceEnd

_WITHIN_S: Final = 60.0
"""The longest one end waits for the other in one step."""


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What one end is to do."""

    mover: Mover
    side: Side
    setting: Setting
    aside_fd: int
    cases: tuple[Case, ...]


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One timed iteration."""

    seconds: float
    cpu_s: float
    """Of both processes, all their threads."""
    waiting: float
    """The part of the receiver's waiting in which it used a core."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How one case went."""

    samples: tuple[Sample, ...] = ()
    failed: str = ""
    """Why it has no figure."""
    remark: str = ""
    """How a process ended, when not well although everything was measured."""


class _Told(msgspec.Struct, frozen=True, kw_only=True):
    """Source -> sink after each iteration."""

    began_s: float | None
    cpu_s: float


def main() -> None:
    job = msgspec.json.decode(sys.argv[1], type=Job)
    with Aside.inherit(job.aside_fd, within_s=_WITHIN_S) as aside:
        module = importlib.import_module(f"bench.kvtransfer.{job.mover.module}")
        place = Place(
            side=job.side, setting=job.setting, aside=aside, option=job.mover.option,
            pool_bytes=max(case.pool_bytes for case in job.cases),
        )  # fmt: skip
        match job.side:
            case "source":
                source: SourceEnd = module.source(place)
                for each in job.cases:
                    _send_all(source, each, aside)
                source.close()
            case "sink":
                sink: SinkEnd = module.sink(place)
                for each in job.cases:
                    _tell(_receive_all(sink, each, aside))
                sink.close()


def _tell(outcome: Outcome) -> None:
    print(msgspec.json.encode(outcome).decode(), flush=True)


def _moves(case: Case) -> list[Move]:
    return [move(case, number) for number in range(case.num_warm + case.num_timed)]


def _send_all(end: SourceEnd, case: Case, aside: Aside) -> None:
    words = end.open(case)
    fill(words)
    aside.swap()
    for each in _moves(case):
        stamp(words, each)
        cpu_s = time.process_time()
        aside.tell(end.stage(each))
        aside.hear()  # armed
        if case.pause_s:
            time.sleep(case.pause_s)
        began_s = end.send(each)
        aside.hear()  # received
        told = _Told(began_s=began_s, cpu_s=time.process_time() - cpu_s)
        end.settle(each)
        aside.tell(msgspec.msgpack.encode(told))
    aside.swap()


def _receive_all(end: SinkEnd, case: Case, aside: Aside) -> Outcome:
    words = end.open(case)
    words[:] = 0
    aside.swap()
    samples, failed = [], ""
    for each in _moves(case):
        samples.append(_receive(end, each, aside))
        if stale := num_stale(words, each):
            failed = failed or f"{stale} blocks were not written in iteration {each.number}"
    if not failed and (wrong := num_wrong(words, each)):
        failed = f"{wrong} blocks hold wrong bytes"
    aside.swap()
    return Outcome(samples=tuple(samples[case.num_warm :]), failed=failed)


def _receive(end: SinkEnd, each: Move, aside: Aside) -> Sample:
    staged = aside.hear()
    cpu_s = time.process_time()
    end.arm(each, staged)
    aside.tell()
    waits_s, waits_cpu_s = time.monotonic(), time.process_time()
    began_s, ended_s = end.receive(each)
    done_s, done_cpu_s = time.monotonic(), time.process_time()
    aside.tell()
    end.settle(each)
    told = msgspec.msgpack.decode(aside.hear(), type=_Told)
    if began_s is None:
        began_s = told.began_s
    assert began_s is not None, "neither end says when it began"
    return Sample(
        seconds=ended_s - began_s,
        cpu_s=done_cpu_s - cpu_s + told.cpu_s,
        waiting=(done_cpu_s - waits_cpu_s) / (done_s - waits_s),
    )


__all__ = ["Job", "Outcome", "Sample"]


if __name__ == "__main__":
    main()
