"""One JSON line a row: ours beside the best peer and the limit, at one size.

The keys up to `run` are the ones results are compared by; what follows are the conditions.
"""

from typing import Final, Literal

import msgspec

from bench.kvtransfer.catalogue import LIMITS, OURS, PEERS, Mover
from bench.kvtransfer.rounds import Effort, sizes
from bench.kvtransfer.tally import Figure, Size, Tally, fastest

Mode = Literal["both copy", "one copies", "tcp", "sleeping", "spinning"]
_OURS: Final[dict[Mode, str]] = {
    "both copy": "baton shm, both copy",
    "one copies": "baton shm, one copies",
    "tcp": "baton tcp",
    "sleeping": "baton shm",
    "spinning": "baton shm, spinning",
}
_THREADS: Final[dict[Mode, int]] = {"both copy": 2, "one copies": 1}
_BARE: Final[dict[Mode, str]] = {
    "sleeping": "bare socket and memcpy",
    "spinning": "bare flag and memcpy",
}


class PeerFigure(msgspec.Struct, frozen=True, kw_only=True):
    value: float
    best: float
    cpu_s_per_gb: float
    setting: str


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """GB/s (1e9 bytes) for "host" and "tcp", µs (p50) for "latency"; medians over all rounds."""

    case: Literal["host", "tcp", "latency"]
    block_bytes: int
    total_bytes: int
    ours: float | None
    best_peer: float | None
    best_peer_name: str
    limit: float | None
    ratio_to_best_peer: float | None
    ratio_to_limit: float | None
    cpu_s_per_gb: float | None
    run: str
    mode: Mode
    limit_name: str
    ours_best: float | None
    """The fastest iteration; for latency the p99."""
    ours_setting: str
    ours_from_publish: float | None
    """Bulk only: counted from before the source says that the blocks are written."""
    ours_failed: str
    peers: dict[str, PeerFigure]
    """`best` as in `ours_best`."""


def rows(tally: Tally, effort: Effort, *, run: str) -> list[Row]:
    bulk = sizes(effort, "bulk")
    modes: tuple[Mode, ...] = ("both copy", "one copies", "tcp")
    found = [_row(tally, mode, size, run) for mode in modes for size in bulk]
    waits: tuple[Mode, ...] = ("sleeping", "spinning")
    return found + [
        _row(tally, mode, size, run) for mode in waits for size in sizes(effort, "latency")
    ]


def _row(tally: Tally, mode: Mode, size: Size, run: str) -> Row:
    mine = next(each for each in OURS if each.name == _OURS[mode])
    ours = tally.better(mine, size)
    peers = _peers(tally, mode, size)
    best = fastest(peers)
    limit, limit_name = _limit(tally, mode, size)
    return Row(
        case=_case(mode), block_bytes=size.block_bytes, total_bytes=size.total_bytes,
        ours=_value(ours), best_peer=_value(best),
        best_peer_name=best.mover.name if best else "",
        limit=_rounded(limit), run=run, mode=mode, limit_name=limit_name,
        ratio_to_best_peer=_ratio(_exact(ours), _exact(best)),
        ratio_to_limit=_ratio(_exact(ours), limit),
        cpu_s_per_gb=_rounded(ours.cpu_s_per_gb) if ours else None,
        ours_best=_extreme(ours), ours_setting=ours.setting if ours else "",
        ours_from_publish=_from_publish(tally, mine, size),
        ours_failed="" if ours else _failed(tally, mine, size),
        peers={each.mover.name: _peer_figure(each) for each in peers},
    )  # fmt: skip


def _case(mode: Mode) -> Literal["host", "tcp", "latency"]:
    match mode:
        case "both copy" | "one copies":
            return "host"
        case "tcp":
            return "tcp"
        case "sleeping" | "spinning":
            return "latency"


def _peers(tally: Tally, mode: Mode, size: Size) -> list[Figure]:
    """On the host every peer counts, over TCP those that use nothing else; for latency those
    whose receivers wait alike."""
    found = [tally.better(mover, size) for mover in PEERS if mode != "tcp" or mover.plane == "tcp"]
    there = [each for each in found if each is not None]
    if size.measure == "latency":
        return [each for each in there if each.spins == (mode == "spinning")]
    return there


def _limit(tally: Tally, mode: Mode, size: Size) -> tuple[float | None, str]:
    if mode == "tcp":
        return tally.iperf_gb_s("1M"), "iperf3, one stream, -l 1M"
    if name := _BARE.get(mode):
        bare = next(each for each in LIMITS if each.name == name)
        return _exact(tally.better(bare, size)), name
    threads = _THREADS[mode]
    return tally.memcpy_gb_s(threads, size.total_bytes), f"memcpy, threads: {threads}"


def _from_publish(tally: Tally, mine: Mover, size: Size) -> float | None:
    publish = Size(measure="publish", block_bytes=size.block_bytes, total_bytes=size.total_bytes)
    return _value(tally.better(mine, publish)) if size.measure == "bulk" else None


def _failed(tally: Tally, mine: Mover, size: Size) -> str:
    whys = [why for (mover, _, at), why in tally.failures.items() if (mover, at) == (mine, size)]
    return tally.absent.get(mine) or next(iter(whys), "not measured")


def _peer_figure(figure: Figure) -> PeerFigure:
    value, best = _value(figure), _extreme(figure)
    assert value is not None and best is not None
    return PeerFigure(
        value=value, best=best, setting=figure.setting,
        cpu_s_per_gb=round(figure.cpu_s_per_gb, 3),
    )  # fmt: skip


def _exact(figure: Figure | None) -> float | None:
    if figure is None:
        return None
    return figure.p50_us if figure.size.measure == "latency" else figure.gb_s


def _value(figure: Figure | None) -> float | None:
    return _rounded(_exact(figure))


def _extreme(figure: Figure | None) -> float | None:
    if figure is None:
        return None
    return _rounded(figure.p99_us if figure.size.measure == "latency" else figure.best_gb_s)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _ratio(value: float | None, other: float | None) -> float | None:
    return round(value / other, 3) if value and other else None
