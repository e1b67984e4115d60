"""What the client wrote, as messages repeat it."""

MAX_SHOWN = 60
"""Characters of a wrong name or value that its error message repeats."""


def shown(text: str) -> str:
    """Short enough for a message."""
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
