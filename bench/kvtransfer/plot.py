"""The run as a picture: ours, the best variant of each library, and the limits."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from bench.kvtransfer.case import KIB, MIB
from bench.kvtransfer.row import Mode, Row

_FAMILIES: Final = ("nixl", "ucx", "mooncake", "gloo", "zmq")
_PANELS: Final[tuple[tuple[str, tuple[Mode, ...]], ...]] = (
    ("one host, GB/s", ("both copy", "one copies")),
    ("TCP, GB/s", ("tcp",)),
    ("one 32 KiB block, p50 µs", ("sleeping", "spinning")),
)
_WIDTH: Final = 0.11
_COLOURS: Final = {
    "ours": "#0b3d91",
    "ours, both copy": "#0b3d91",
    "ours, one copies": "#5b8def",
    "ours, tcp": "#0b3d91",
    "nixl": "#76b900",
    "ucx": "#e08214",
    "mooncake": "#8073ac",
    "gloo": "#b35806",
    "zmq": "#bf812d",
}


def plot(rows: Sequence[Row], path: Path) -> bool:
    """False where matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        1, len(_PANELS), figsize=(20, 5.5), width_ratios=(6, 6, 2), layout="constrained"
    )
    for panel, (title, modes) in zip(panels, _PANELS, strict=True):
        panel.set_title(title)
        _bars(panel, [row for row in rows if row.mode in modes], modes)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return True


def _bars(panel: Any, rows: Sequence[Row], modes: Sequence[Mode]) -> None:
    """One group a size, or a mode where there is one size; the limit is a line over it."""
    waits = modes[0] == "sleeping"
    groups = [[row] for row in rows] if waits else _by_size(rows)
    series: dict[str, list[float]] = {}
    for group in groups:
        for name, value in _values(group, waits).items():
            series.setdefault(name, []).append(value)
    for number, (name, values) in enumerate(series.items()):
        places = [at + number * _WIDTH for at in range(len(groups))]
        panel.bar(places, values, _WIDTH, label=name, color=_COLOURS[name])
    for at, group in enumerate(groups):
        for limit in {row.limit for row in group if row.limit is not None}:
            panel.hlines(limit, at - _WIDTH, at + _WIDTH * len(series), "black", "dashed")
    panel.plot([], [], "k--", label="limit")
    panel.set_xticks(
        [at + 3 * _WIDTH for at in range(len(groups))], [_label(group, waits) for group in groups]
    )
    panel.legend(fontsize=8)


def _by_size(rows: Sequence[Row]) -> list[list[Row]]:
    groups: dict[tuple[int, int], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.total_bytes, row.block_bytes), []).append(row)
    return list(groups.values())


def _values(group: Sequence[Row], waits: bool) -> dict[str, float]:
    values = {f"ours, {row.mode}" if not waits else "ours": row.ours or 0.0 for row in group}
    for family in _FAMILIES:
        found = [
            figure.value
            for name, figure in group[0].peers.items()
            if name.replace(",", "").split()[0] == family
        ] or [0.0]
        values[family] = min(found) if waits else max(found)
    return values


def _label(group: Sequence[Row], waits: bool) -> str:
    row = group[0]
    if waits:
        return row.mode
    return f"{row.block_bytes // KIB} KiB\nof {row.total_bytes // MIB} MiB"
