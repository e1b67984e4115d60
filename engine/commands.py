"""What other threads ask of an engine, and the box they put it in.

Filled by any thread through `engine.loop.Engine`, emptied by the engine thread. Equal commands
about one sequence collapse, so the box holds a bounded number per sequence.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import Condition
from typing import TypeVarTuple

from engine.batch import AdapterId, SequenceId
from engine.kvcache.loans import LentPrefix, LoanId
from engine.sequence import Mode
from protocol.errors import CapacityError
from protocol.ids import BlockHash
from protocol.messages import Sampling
from protocol.readings import PromptReading

Command = tuple[Callable[..., None], tuple[object, ...]]
"""What the engine thread is to call, and with what."""
Ts = TypeVarTuple("Ts")


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
    priority: int = 0
    """The lower, the sooner it is served."""
    reading: PromptReading | None = None
    """Of the prompt; not REMOTE, whose prompt is computed elsewhere."""
    pull_tokens: int = 0
    """Of its first tokens, those that somebody else is believed to have cached: what the own cache
    lacks of them is asked for by `EngineObserver.pull`. Not REMOTE."""
    fork_of: SequenceId | None = None
    """A sequence of the same prompt, submitted before: this one waits until the KV of that prompt
    is here and goes on from it, a copy of its last block included. If that one ends without, so
    does this one, as `source_lost`; of one that is unknown nothing is expected. LOCAL only, and
    with nothing to read."""
    adapter: AdapterId | None = None
    """The adapter whose weights it wants. No engine has any yet."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PrefixToLend:
    """Cached blocks that a peer asks for."""

    loan: LoanId
    seed: BlockHash
    """Where the hash chain of these tokens begins."""
    token_ids: Sequence[int]
    tell: Callable[[LentPrefix], None]
    """Called on the engine thread with what is lent, perhaps nothing; as an observer it must
    neither block nor raise."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SpareToHold:
    """A block without contents, to see whether one can be moved at all."""

    loan: LoanId
    tell: Callable[[int | None], None]
    """As of `PrefixToLend`; None: there is none to spare."""


@dataclass(slots=True)
class Inbox:
    """Commands in order of arrival, and the ids of the sequences they may speak of."""

    capacity: int
    """Submissions not yet taken; further ones are refused."""
    _changed: Condition = field(default_factory=Condition)
    _commands: dict[Command, None] = field(default_factory=dict)
    _ids: set[SequenceId] = field(default_factory=set)
    _num_submits: int = 0
    _closed: str = ""

    def submit(self, sequence: SequenceId, call: Callable[[*Ts], None], *args: *Ts) -> None:
        """Raise CapacityError when full or closed, ValueError when the id is in use."""
        with self._changed:
            if self._closed:
                raise CapacityError(self._closed)
            if self._num_submits >= self.capacity:
                raise CapacityError(f"{self._num_submits} submissions wait to be looked at")
            if sequence in self._ids:
                raise ValueError(f"id {sequence!r} is in use; an id names one sequence at a time")
            self._ids.add(sequence)
            self._num_submits += 1
            self._put(call, args)

    def tell(
        self, sequence: SequenceId, call: Callable[[SequenceId, *Ts], None], *args: *Ts
    ) -> None:
        """About a sequence that is not here (any more) there is nothing to say."""
        with self._changed:
            if sequence in self._ids:
                self._put(call, (sequence, *args))

    def put_command(self, call: Callable[[*Ts], None], *args: *Ts) -> None:
        """About no sequence."""
        with self._changed:
            self._put(call, args)

    def take_commands(self, *, wait: bool) -> list[Command]:
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

    def forget(self, sequence: SequenceId) -> None:
        """It owns nothing any more."""
        with self._changed:
            self._ids.discard(sequence)

    def close(self, reason: str) -> None:
        """Refuse submissions from now on; the first reason stays."""
        with self._changed:
            self._closed = self._closed or reason

    def _put(self, call: Callable[..., None], args: tuple[object, ...]) -> None:
        self._commands[call, args] = None
        self._changed.notify_all()
