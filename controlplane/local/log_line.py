"""One line a child wrote: a JSON log event where it is one, plain text otherwise.

Children are ours but may crash with a traceback, so nothing about a line is assumed.
"""

import json
from dataclasses import dataclass, field
from typing import Any

WARNING_LEVELS = frozenset({"warning", "error", "critical"})


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLine:
    child: str
    text: str
    """As written, without the newline."""
    event: str
    """The event's name, or the text itself where the line is not a log event."""
    level: str
    """Lower case; "" where the line is not a log event."""
    fields: dict[str, Any] = field(default_factory=dict)

    @property
    def is_warning(self) -> bool:
        return self.level in WARNING_LEVELS

    @property
    def is_plain(self) -> bool:
        return self.level == ""


def parse_line(child: str, text: str) -> LogLine:
    """Never raises."""
    try:
        fields = json.loads(text)
    except ValueError:
        fields = None
    if not isinstance(fields, dict) or "event" not in fields:
        return LogLine(child=child, text=text, event=text, level="")
    level = str(fields.get("level", "info")).lower()
    return LogLine(child=child, text=text, event=str(fields["event"]), level=level, fields=fields)
