"""One sequence's life inside one engine: its tokens, its blocks, its state.

Written by `engine.scheduling` alone, on the engine thread. Holds facts only; it never allocates,
frees or reads a clock.
"""

from array import array
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from engine.batch import AdapterId, ReadRows, SampledToken, SequenceId
from engine.constraint import Constraint
from engine.kvcache.block_table import BlockTable
from protocol.messages import FailCode, FinishReason, Sampling
from protocol.readings import PromptReading, ScorePrompt, rows_of
from protocol.state_table import Life, StateTable


class Mode(StrEnum):
    LOCAL = "local"
    """Compute the prompt here, then decode here."""
    HANDOVER = "handover"
    """Compute the prompt and one token; the blocks stay leased for whoever decodes."""
    REMOTE = "remote"
    """Wait for a fetch to land the prompt's KV, then decode here."""


class SequenceState(StrEnum):
    COMPILING = "compiling"
    """Its grammar is compiled; owns no block."""
    WAITING = "waiting"
    """In the queue; owns no block."""
    DEFERRED = "deferred"
    """Another sequence computes or fetches what its prompt begins with; owns no block, but a seat
    and room are kept for it."""
    FETCHING = "fetching"
    """Its blocks are reserved and a fetch writes into them: REMOTE all its KV, of others the
    beginning that somebody else has cached."""
    PREFILLING = "prefilling"
    """Owns blocks, or in windows a promise of them, for all its tokens; the KV of some is still to
    be computed."""
    DECODING = "decoding"
    """One token a step."""
    DRAINING = "draining"
    """Has its ending; its blocks stay until no launched forward refers to them."""
    LEASED = "leased"
    """HANDOVER: has its ending; its blocks stay until the lease's end."""
    UNWINDING = "unwinding"
    """Has its ending; its blocks stay until its fetch has ended."""
    FREED = "freed"
    """Owns nothing and is forgotten."""


class SequenceEvent(StrEnum):
    COMPILED = "compiled"
    DEFERRED = "deferred"
    RESUMED = "resumed"
    """What it waited for is here, or will not come."""
    ADMITTED = "admitted"
    RESERVED = "reserved"
    LANDED = "landed"
    PULLED = "pulled"
    """The fetch of its beginning is over, however it ended: the rest is computed."""
    SAMPLED = "sampled"
    PREEMPTED = "preempted"
    ENDED = "ended"
    """The ending is out and nothing else refers to the blocks."""
    ENDED_IN_FLIGHT = "ended_in_flight"
    ENDED_UNDER_LEASE = "ended_under_lease"
    ENDED_UNDER_FETCH = "ended_under_fetch"
    DRAINED = "drained"
    """The last launched forward that refers to the blocks is over."""
    DRAINED_UNDER_LEASE = "drained_under_lease"
    LEASE_ENDED = "lease_ended"
    FETCH_ENDED = "fetch_ended"


_S, _E = SequenceState, SequenceEvent
SEQUENCE_TABLE: Final = StateTable(
    {
        (_S.COMPILING, _E.COMPILED): _S.WAITING,
        (_S.COMPILING, _E.ENDED): _S.FREED,
        (_S.WAITING, _E.ADMITTED): _S.PREFILLING,
        (_S.WAITING, _E.RESERVED): _S.FETCHING,
        (_S.WAITING, _E.DEFERRED): _S.DEFERRED,
        (_S.WAITING, _E.ENDED): _S.FREED,
        (_S.DEFERRED, _E.RESUMED): _S.WAITING,
        (_S.DEFERRED, _E.ENDED): _S.FREED,
        (_S.FETCHING, _E.LANDED): _S.DECODING,
        (_S.FETCHING, _E.PULLED): _S.PREFILLING,
        (_S.FETCHING, _E.PREEMPTED): _S.WAITING,
        (_S.FETCHING, _E.ENDED): _S.FREED,
        (_S.FETCHING, _E.ENDED_UNDER_FETCH): _S.UNWINDING,
        (_S.PREFILLING, _E.SAMPLED): _S.DECODING,
        (_S.PREFILLING, _E.PREEMPTED): _S.WAITING,
        (_S.PREFILLING, _E.ENDED): _S.FREED,
        (_S.PREFILLING, _E.ENDED_IN_FLIGHT): _S.DRAINING,
        (_S.PREFILLING, _E.ENDED_UNDER_LEASE): _S.LEASED,
        (_S.DECODING, _E.PREEMPTED): _S.WAITING,
        (_S.DECODING, _E.ENDED): _S.FREED,
        (_S.DECODING, _E.ENDED_IN_FLIGHT): _S.DRAINING,
        (_S.DRAINING, _E.DRAINED): _S.FREED,
        (_S.DRAINING, _E.DRAINED_UNDER_LEASE): _S.LEASED,
        (_S.LEASED, _E.LEASE_ENDED): _S.FREED,
        (_S.UNWINDING, _E.FETCH_ENDED): _S.FREED,
    }
)


@dataclass(frozen=True, slots=True)
class Complete:
    """All its tokens are out."""

    reason: FinishReason


@dataclass(frozen=True, slots=True)
class HandOver:
    """Its one token is out; another worker goes on."""


@dataclass(frozen=True, slots=True)
class Fail:
    code: FailCode
    message: str
    final: bool = False
    """Another worker would fail as well, whatever the code says."""


@dataclass(frozen=True, slots=True)
class Abandon:
    """Somebody asked for its end."""


Verdict = Complete | HandOver | Fail | Abandon
"""How a sequence ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceUsage:
    """What a sequence took until its ending."""

    num_tokens: int
    """Outputs, those given at submission included."""
    cached_tokens: int
    """Prompt tokens found in the prefix cache; not those that were pulled."""
    queued_s: float
    prefill_s: float
    """From admission to the first token, a pull included; for REMOTE the time of the fetch."""
    decode_s: float


@dataclass(frozen=True, slots=True)
class FetchLanded:
    """The prompt's KV is in the reserved blocks; with it came the first token."""

    token: SampledToken


@dataclass(frozen=True, slots=True)
class FetchLost:
    """The KV did not arrive whole. But for the quarantined ones, nobody writes into the blocks any
    more."""

    reason: str
    num_tokens: int = 0
    """From the first on, those whose KV is in the blocks all the same, found in the prefix cache
    or arrived and verified: they stay findable, so that whoever comes next need not fetch them."""
    quarantined: tuple[int, ...] = ()
    """Blocks that somebody may still write into, until `Engine.quiet` names them."""


FetchOutcome = FetchLanded | FetchLost


@dataclass(frozen=True, slots=True)
class PullEnded:
    """The fetch of a beginning that somebody else had cached is over, landed or not. But for the
    quarantined ones, nobody writes into the blocks any more."""

    num_tokens: int
    """From the first on, in whole blocks, those whose KV is in the blocks: found in the own prefix
    cache, or arrived and verified."""
    quarantined: tuple[int, ...] = ()
    """As of `FetchLost`."""


@dataclass(slots=True, kw_only=True, eq=False)
class Sequence:
    """`prompt` and `outputs` are stored once and shared with every chunk, never copied."""

    id: SequenceId
    prompt: Seq[int]
    outputs: list[int]
    """Tokens generated so far, those given at submission first."""
    sampling: Sampling
    mode: Mode
    block_table: BlockTable
    """Its blocks, changed by the scheduler as the rest is."""
    reading: PromptReading | None = None
    adapter: AdapterId | None = None
    priority: int = 0
    """The lower, the more urgent."""
    arrival: int = 0
    """Order of submission; kept when preempted, so that the oldest always gets on."""
    constraint: Constraint | None = None
    """What its next tokens are held to; has accepted `outputs`."""
    ending_ids: frozenset[int] = frozenset()
    """As `Sampling.ending_ids`: with no other token does its text end before `max_outputs`."""
    max_outputs: int = 0
    """Tokens of `outputs`: what it asked for, or what the context has room for."""

    life: Life[SequenceState, SequenceEvent] = field(init=False)
    num_computed: int = 0
    """Tokens whose KV is in the blocks."""
    num_launched: int = 0
    """Tokens whose KV is in the blocks once every launched forward is over."""
    in_flight: int = 0
    """Launched forwards that refer to the blocks."""
    num_cached: int | None = None
    """Tokens found in the prefix cache when first admitted; None until then."""
    fork_of: SequenceId | None = None
    """Of an equal prompt, and before it in the queue: once that one's KV is here, this one goes on
    from it."""
    pull_tokens: int = 0
    """Not REMOTE: of its first tokens, those that somebody else is believed to have cached, until
    they are pulled or not."""
    num_awaited: int = 0
    """Of its first tokens, those whose KV another brings; 0 but while it is DEFERRED."""
    is_told: bool = False
    """Its admission is."""
    num_read: int = 0
    """Rows before this token are read, as far as they are asked for."""
    landed: bool = False
    lease_held: bool = False
    fetch_open: bool = False
    """Somebody may write into the blocks."""
    verdict: Verdict | None = None

    _prompt_ids: Seq[int] | None = None

    submitted_at: float = 0.0
    admitted_at: float = 0.0
    first_token_at: float = 0.0

    def __post_init__(self) -> None:
        name = f"sequence {self.id} ({self.mode})"
        compiles = self.sampling.grammar is not None and self.constraint is None
        state = SequenceState.COMPILING if compiles else SequenceState.WAITING
        self.life = SEQUENCE_TABLE.begin(state, name=name)

    @property
    def state(self) -> SequenceState:
        return self.life.state

    @property
    def num_tokens(self) -> int:
        return len(self.prompt) + len(self.outputs)

    @property
    def pending(self) -> int:
        """Tokens that launched forwards sample and nobody has read yet."""
        return max(0, self.num_launched - self.num_tokens + 1)

    @property
    def looks_back(self) -> bool:
        """A grammar needs to see every token before the next is chosen."""
        return self.sampling.grammar is not None

    @property
    def urgency(self) -> tuple[int, int]:
        """The lower goes first: by priority, then by arrival."""
        return self.priority, self.arrival

    @property
    def generates(self) -> bool:
        """Or its prompt alone is computed."""
        return self.sampling.max_tokens > 0

    @property
    def num_reusable(self) -> int:
        """Of its first tokens KV that others computed may be used: nobody waits for their rows."""
        rows = self.rows_to_read(0, self.num_tokens)
        return rows.start if rows else self.num_tokens

    def rows_to_read(self, start: int, stop: int) -> range:
        """Of tokens [start, stop), those whose rows are asked for and not read yet."""
        if self.reading is None:
            return range(0)
        asked = rows_of(self.reading, num_prompt=len(self.prompt))
        return range(max(asked.start, start, self.num_read), min(asked.stop, stop))

    def read_rows(self, start: int, stop: int) -> ReadRows | None:
        """What is read of a chunk of these tokens."""
        if self.reading is None:
            return None
        rows = self.rows_to_read(start, stop)
        if not rows:
            return None
        places = range(rows.start - start, rows.stop - start)
        if isinstance(self.reading, ScorePrompt):
            targets = self.prompt[rows.start + 1 : rows.stop + 1]
            return ReadRows(rows=places, targets=targets, num_top=self.reading.num_top)
        return ReadRows(rows=places, targets=None)

    @property
    def needs_fetch(self) -> bool:
        return self.mode is Mode.REMOTE and not self.landed

    @property
    def is_pulling(self) -> bool:
        """Its beginning is being fetched, from somebody's prefix cache."""
        return self.fetch_open and self.mode is not Mode.REMOTE

    @property
    def num_to_compute(self) -> int:
        """Tokens whose KV nobody has, as far as is known."""
        pulled = min(self.pull_tokens, self.num_tokens)
        return self.num_tokens - max(self.num_computed, self.num_awaited, pulled)

    @property
    def leases(self) -> bool:
        """From admission on somebody may read its blocks under a lease."""
        return self.mode is Mode.HANDOVER

    @property
    def shown_blocks(self) -> tuple[int, ...]:
        """The table as whoever lends or fetches knows it at admission: of a HANDOVER what it
        lends."""
        if self.leases:
            return self.block_table.seen_after(self.num_tokens)
        return tuple(self.block_table.blocks)

    @property
    def preemptible(self) -> bool:
        """A lease or a fetch pins the others to their blocks."""
        return not self.leases and self.state in (SequenceState.PREFILLING, SequenceState.DECODING)

    @property
    def prompt_ids(self) -> Seq[int]:
        """Distinct tokens of the prompt, collected once: a penalty looks at them for each token.
        Empty unless one does."""
        if self._prompt_ids is None:
            asked = self.sampling.repetition_penalty != 1
            self._prompt_ids = array("q", set(self.prompt) if asked else ())
        return self._prompt_ids

    def tokens(self, start: int, stop: int) -> list[int]:
        """Tokens [start, stop) of prompt and outputs."""
        split = len(self.prompt)
        if start >= split:
            return self.outputs[start - split : stop - split]
        head = list(self.prompt[start:stop])
        if stop > split:
            head += self.outputs[: stop - split]
        return head

    def usage(self, *, now: float) -> SequenceUsage:
        """Until `now`; 0 s for what it has not come to."""
        admitted = self.admitted_at or now
        first_token = self.first_token_at or now
        return SequenceUsage(
            num_tokens=len(self.outputs),
            cached_tokens=min(self.num_cached or 0, len(self.prompt)),
            queued_s=admitted - self.submitted_at,
            prefill_s=first_token - admitted,
            decode_s=now - first_token,
        )

    def move(self, event: SequenceEvent) -> None:
        """Go where SEQUENCE_TABLE says; raises IllegalTransition where it says nothing."""
        facts = (
            f"{self.num_computed}/{self.num_tokens} tokens computed, {self.in_flight} steps in "
            f"flight, {len(self.block_table.blocks)} blocks, verdict {self.verdict}"
        )
        self.life.move(event, facts=facts)
