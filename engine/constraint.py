"""What the tokens of a sequence are held to, as the scheduler knows it.

A function of the tokens accepted, which are never taken back: a sequence that is preempted, or of
which a step is undone, keeps its tokens.
"""

from typing import Protocol

from engine.batch import Allowed


class Constraint(Protocol):
    """Of one sequence. Told of each of its tokens once, in order."""

    def accept(self, token_id: int) -> None: ...

    @property
    def has_ended(self) -> bool:
        """The text is whole, and no token may follow."""
        ...

    @property
    def error(self) -> str:
        """Why no token can follow; "" while one can."""
        ...

    @property
    def allowed(self) -> Allowed | None:
        """What the next token may be."""
        ...
