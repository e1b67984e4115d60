"""What a part measured as a row of a table. Pure."""

from collections.abc import Iterator, Mapping

from bench.row import Row

TEXT_CHARS = 100
MS = ("step_ms", "prefill_ms")


def row_of(name: str, results: Mapping[str, object], *, raised: bool) -> Row:
    """What was `raised` while we measured did not pass; a peer that failed, or what has no bar, is
    told."""
    if "correct" in results:
        return Row(part=name, result=_said(results)[:TEXT_CHARS], passed=bool(results["correct"]))
    if "failed" in results:
        passed = False if raised else None
        return Row(part=name, result=str(results["failed"])[:TEXT_CHARS], passed=passed)
    share, bar, limit = results.get("share"), results.get("bar"), results.get("limit_ms")
    taken_ms = next((results[key] for key in MS if key in results), None)
    if not isinstance(taken_ms, float):
        return Row(part=name, result=_said(results)[:TEXT_CHARS])
    return Row(
        part=name,
        result=f"{taken_ms:.3f} ms",
        limit=f"{limit:.3f} ms" if isinstance(limit, float) else "",
        share=share if isinstance(share, float) else None,
        passed=share >= bar if isinstance(share, float) and isinstance(bar, float) else None,
    )


def rows_of_parts(
    name: str, results: Mapping[str, object], limits_ms: Mapping[str, float]
) -> Iterator[Row]:
    """Of a step broken down, a row each part: its milliseconds beside the least it could take."""
    for part, taken_ms in results.items():
        least_ms = limits_ms.get(part)
        if isinstance(taken_ms, float) and part != "launched":
            yield Row(
                part=f"{name}: {part}", result=f"{taken_ms:.3f} ms",
                limit="" if least_ms is None else f"{least_ms:.3f} ms",
                share=least_ms / taken_ms if least_ms and taken_ms else None,
            )  # fmt: skip


def _said(results: Mapping[str, object]) -> str:
    return ", ".join(f"{key} {_short(value)}" for key, value in results.items())


def _short(value: object) -> str:
    if isinstance(value, Mapping):
        return _said(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
