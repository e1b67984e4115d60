"""What a part measured as a row of a table. Pure."""

from collections.abc import Mapping

from bench.row import Row

TEXT_CHARS = 100
MS = ("step_ms", "prefill_ms")


def row_of(name: str, results: Mapping[str, object], *, is_ours: bool) -> Row:
    """A part of ours that failed did not pass; a peer that did, or one without a bar, is told."""
    if "failed" in results:
        passed = False if is_ours else None
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


def _said(results: Mapping[str, object]) -> str:
    return ", ".join(f"{key} {_short(value)}" for key, value in results.items())


def _short(value: object) -> str:
    if isinstance(value, Mapping):
        return _said(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
