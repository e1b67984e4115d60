"""A generation whose answer is a response object."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from protocol.store.responses import ResponseStore
from router.api.generation import Generation
from router.responses.recent import RecentAnswers


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseGeneration(Generation):
    token: str
    """Of its id and those of its items; not to be guessed."""
    told: Mapping[str, Any]
    """Fields of the response object that no token changes."""
    as_summary: bool
    """Thoughts are given where summaries are."""
    store: ResponseStore | None
    """Where it is kept when it has ended; None: nowhere."""
    recent: RecentAnswers | None
    """Where its items are remembered for a while, if it is not kept."""
    owner: str
    items: bytes
    """JSON of what it was made from; empty if it is not kept."""


def as_response(generation: Generation, **more: Any) -> ResponseGeneration:
    known = {one.name: getattr(generation, one.name) for one in fields(Generation)}
    return ResponseGeneration(**known | more)
