"""A life as a table of transitions: whoever has states moves through one of these.

Pure. A row that is missing is a bug of ours, never an input's fault: it raises with the story of
the entity, so that the exception is the debugging.
"""

from collections import deque
from collections.abc import Mapping
from enum import StrEnum
from typing import Final, Generic, TypeVar

State = TypeVar("State", bound=StrEnum)
Event = TypeVar("Event", bound=StrEnum)

STORY: Final = 32
"""Changes that an entity remembers of its life."""


class IllegalTransition(Exception):
    """The table has no row for this event in this state: a bug. Its text is the story."""


class StateTable(Generic[State, Event]):
    """What may follow what. One a kind of entity, shared by all of them; never changes.

    A state without a row of its own is final.
    """

    def __init__(self, rows: Mapping[tuple[State, Event], State]) -> None:
        self.rows: Final = dict(rows)
        self._left = frozenset(state for state, _ in self.rows)

    def is_final(self, state: State) -> bool:
        return state not in self._left

    def begin(self, state: State, *, name: str) -> "Life[State, Event]":
        """The life of one entity, at its beginning; `name` is what its story calls it."""
        return Life(self, state, name)


class Life(Generic[State, Event]):
    """Where one entity is, and how it came there."""

    __slots__ = ("_name", "_story", "_table", "state")

    def __init__(self, table: StateTable[State, Event], state: State, name: str) -> None:
        self.state = state
        self._table = table
        self._name = name
        self._story: deque[tuple[Event, State]] = deque(maxlen=STORY)

    @property
    def is_over(self) -> bool:
        return self._table.is_final(self.state)

    @property
    def story(self) -> str:
        """`event->state` of its last changes, in order; an event that changes nothing is no part
        of it."""
        return ", ".join(f"{event}->{state}" for event, state in self._story)

    def move(self, event: Event, *, facts: str = "") -> State:
        """Go where the table says; `facts` are what a reader of the story wants to know besides.

        Raises IllegalTransition where the table says nothing, and changes nothing then.
        """
        target = self._table.rows.get((self.state, event))
        if target is None:
            told = f"; {facts}" if facts else ""
            raise IllegalTransition(
                f"{self._name}: {event} in state {self.state}; story: [{self.story}]{told}"
            )
        if target is not self.state:
            self._story.append((event, target))
            self.state = target
        return target
