"""What other threads ask of an engine, and the box they put it in.

Written by any thread through `engine.loop.Engine`, emptied by the engine thread. Equal commands
about one sequence collapse, so the box holds a bounded number per sequence that lives.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import Condition

from engine.batch import SequenceId
from engine.sequence import FetchOutcome, Mode
from protocol.errors import CapacityError
from protocol.messages import Sampling


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Submission:
    """One sequence to run. The token lists belong to the engine from now on."""

    id: SequenceId
    prompt: Sequence[int]
    generated: Sequence[int] = ()
    """Tokens after the prompt that the client already has."""
    sampling: Sampling
    salt: str = ""
    mode: Mode = Mode.LOCAL


@dataclass(frozen=True, slots=True, eq=False)
class Submit:
    submission: Submission
    at: float


@dataclass(frozen=True, slots=True)
class Abort:
    id: SequenceId


@dataclass(frozen=True, slots=True)
class FetchDone:
    id: SequenceId
    outcome: FetchOutcome


@dataclass(frozen=True, slots=True)
class Release:
    id: SequenceId


@dataclass(frozen=True, slots=True)
class Quiet:
    """Nobody writes into these quarantined blocks any more."""

    blocks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Stop:
    pass


Command = Submit | Abort | FetchDone | Release | Quiet | Stop


@dataclass(slots=True)
class Inbox:
    """Commands in order of arrival, and the ids of the sequences they may speak of."""

    capacity: int
    """Submissions not yet taken; further ones are refused."""
    _changed: Condition = field(default_factory=Condition)
    _commands: dict[Command, None] = field(default_factory=dict)
    _live: set[SequenceId] = field(default_factory=set)
    _num_submits: int = 0
    _closed: str = ""

    def submit(self, command: Submit) -> None:
        """Raise CapacityError when full or closed, ValueError when the id is in use."""
        sequence_id = command.submission.id
        with self._changed:
            if self._closed:
                raise CapacityError(self._closed)
            if self._num_submits >= self.capacity:
                raise CapacityError(f"{self._num_submits} submissions wait to be looked at")
            if sequence_id in self._live:
                raise ValueError(
                    f"id {sequence_id!r} is in use; an id names one sequence at a time"
                )
            self._live.add(sequence_id)
            self._num_submits += 1
            self._put(command)

    def tell(self, command: Abort | FetchDone | Release) -> None:
        """About a sequence that does not live (any more) there is nothing to say."""
        with self._changed:
            if command.id in self._live:
                self._put(command)

    def put(self, command: Quiet | Stop) -> None:
        """About no sequence."""
        with self._changed:
            self._put(command)

    def take(self, *, wait: bool) -> list[Command]:
        """All commands so far; with `wait`, at least one."""
        if not wait and not self._commands:
            return []
        with self._changed:
            while wait and not self._commands:
                self._changed.wait()
            commands = list(self._commands)
            self._commands.clear()
            self._num_submits = 0
            return commands

    def forget(self, sequence_id: SequenceId) -> None:
        """The sequence owns nothing any more."""
        with self._changed:
            self._live.discard(sequence_id)

    def close(self, reason: str) -> None:
        """Refuse submissions from now on; the first reason stays."""
        with self._changed:
            self._closed = self._closed or reason

    def _put(self, command: Command) -> None:
        self._commands[command] = None
        self._changed.notify_all()
