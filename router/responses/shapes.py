"""The response object and its items, as JSON shows them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["in_progress", "completed", "incomplete", "failed"]
ItemStatus = Literal["in_progress", "completed", "incomplete"]
OutputKind = Literal["message", "reasoning", "summary", "function_call"]
"""`summary`: reasoning, given where summaries are."""
_PREFIXES = {"message": "msg", "reasoning": "rs", "summary": "rs", "function_call": "fc"}


@dataclass(slots=True, kw_only=True)
class OutputItem:
    """One item of an answer as it grows."""

    kind: OutputKind
    id: str
    index: int
    """Among the answer's items."""
    call_id: str = ""
    name: str = ""
    status: ItemStatus = "in_progress"
    texts: list[str] = field(default_factory=list)
    entries: list[Any] = field(default_factory=list)
    """Log probabilities of its tokens, if asked for."""

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def part(self) -> dict[str, Any]:
        """The one part of a message or of reasoning."""
        match self.kind:
            case "message":
                shown = {"type": "output_text", "text": self.text, "annotations": []}
                return shown | {"logprobs": self.entries}
            case "reasoning":
                return {"type": "reasoning_text", "text": self.text}
            case _:
                return {"type": "summary_text", "text": self.text}

    def shape(self, *, empty: bool = False) -> dict[str, Any]:
        """`empty`: as it is when it has just begun."""
        shown: dict[str, Any] = {"id": self.id, "status": self.status}
        parts = [] if empty else [self.part()]
        match self.kind:
            case "message":
                return shown | {"type": "message", "role": "assistant", "content": parts}
            case "reasoning":
                more = {"summary": [], "content": parts, "encrypted_content": None}
                return shown | {"type": "reasoning"} | more
            case "summary":
                more = {"summary": parts, "content": [], "encrypted_content": None}
                return shown | {"type": "reasoning"} | more
            case "function_call":
                called = {"call_id": self.call_id, "name": self.name, "arguments": self.text}
                return shown | {"type": "function_call"} | called


def item_id(kind: OutputKind, token: str, index: int) -> str:
    """Says in which response it is: references to it need no index of their own."""
    return f"{_PREFIXES[kind]}_{token}_{index}"


def response_id(token: str) -> str:
    return f"resp_{token}"


def response_of_item(ident: str) -> tuple[str, int] | None:
    """The response that has the item, and where; None: no id of ours."""
    _, _, rest = ident.partition("_")
    token, _, index = rest.partition("_")
    if not token or not (index.isascii() and index.isdecimal() and len(index) < 10):
        return None
    return response_id(token), int(index)


def response_shape(
    told: Mapping[str, Any],
    *,
    status: Status,
    output: list[dict[str, Any]],
    usage: dict[str, Any] | None = None,
    error: dict[str, str] | None = None,
    completed_at: int | None = None,
) -> dict[str, Any]:
    """`told`: what is known before an answer, as of `router.responses.prepare`."""
    reason = {"reason": "max_output_tokens"} if status == "incomplete" else None
    return {
        **told,
        "status": status,
        "completed_at": completed_at,
        "error": error,
        "incomplete_details": reason,
        "output": output,
        "usage": usage,
    }
