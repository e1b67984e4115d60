"""The requests a worker has accepted: what moves their KV, what was said, and one ending for each.

The event loop adds jobs, the engine's thread ends them. Tokens and endings of one engine step wait
until `flush_step`, so that they leave as one `Step` message per router, and the token that ends a
request carries the text still held back.
"""

import math
import sys
import threading
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, assert_never

from engine.batch import RowsRead, SampledToken, ScoredRows, SequenceId, SummedRows
from engine.observer import PrefixToPull
from engine.sequence import Mode
from kvtransfer.messages import FetchId
from protocol.ids import LeaseId, RequestId, RouterId
from protocol.messages import (
    Aborted,
    Computation,
    Decode,
    Emit,
    Failed,
    Finished,
    OfAttempt,
    PrefillDone,
    PrefixPull,
    PrefixSource,
    PromptScores,
    PromptVector,
    ReadPrompt,
    Step,
    Ticket,
    TokenLogprob,
    ToRouter,
)
from protocol.readings import PoolPrompt, PromptReading, ScorePrompt, TokenScore, rows_of
from protocol.text.tokenizer import TextState
from worker.reported.canary_end import CanarySource
from worker.reported.transfer_speed import TransferSpeed
from worker.transport_uses import TransportUses

MAX_STOP_CHARS = 1 << 16
"""Of all stop strings of a request: the engine's thread looks for them at every token."""
MAX_GRAMMAR_CHARS = 1 << 20
MAX_BEGINNING = 1 << 10
"""Tokens of all runs that a grammar may begin after: they are looked for at every token."""
MAX_TOP = 128
"""Tokens named at each place of a prompt that is scored."""
_FLOATS = (
    "temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
)  # fmt: skip
SCORES_A_MESSAGE = 64
"""With 20 alternatives each a router spends some milliseconds on them: its streams go on."""
RequestEnding = Finished | Failed | Aborted | PrefillDone
Key = tuple[RouterId, RequestId, int]
"""Router, request, attempt."""


class Transfers(Protocol):
    """What brings KV to a role's requests or lends theirs. `pull`, `admitted`, `computed`,
    `settle_job` and `ending_told` are for the engine's thread too; only `close` may block."""

    @property
    def uses(self) -> TransportUses: ...

    @property
    def canaries(self) -> CanarySource:
        """Of single blocks, from peers of the other role."""
        ...

    @property
    def kv_address(self) -> str:
        """As of `protocol.messages.Registration`."""
        ...

    @property
    def speed(self) -> TransferSpeed:
        """Of KV fetched."""
        ...

    def mode_of(self, message: Computation) -> Mode:
        """How the engine runs it. ValueError when this role cannot do what it says."""

    def hold_ticket(self, job: "Job") -> None:
        """The job is accepted: keep alive the KV that waits for it elsewhere."""

    def settle_job(self, job: "Job", ending: RequestEnding) -> None:
        """The job has its ending, of which nobody is told yet. Any thread."""

    def abort_request(self, key: Key) -> None:
        """KV that still moves for this request, its job ended or not, is not wanted any more."""

    def drop_request(self, message: Computation) -> None:
        """It is not accepted: whoever holds KV for it may let it go."""

    def moving(self) -> list[Key]:
        """Requests whose KV is read or written by others."""

    def is_idle(self) -> bool:
        """Nobody else reads or writes our blocks."""

    def pull_tokens(self, job: "Job") -> int:
        """Of its first tokens, those that the engine is to ask for by `pull`."""

    def pull(self, job: "Job", prefix: PrefixToPull) -> None:
        """As `engine.observer.EngineObserver.pull`."""

    def admitted(
        self, job: "Job", block_table: tuple[int, ...], num_cached_tokens: int, queued_s: float
    ) -> None:
        """As `engine.observer.EngineObserver.admitted`."""

    def computed(self, job: "Job", num_tokens: int) -> None:
        """As `engine.observer.EngineObserver.computed`."""

    def ending_told(self, job: "Job", ending: RequestEnding) -> None:
        """The router has been told of an ending that the engine gave."""

    def close(self) -> None:
        """Leave no thread or socket; nobody reads or writes our blocks any more."""


@dataclass(slots=True, kw_only=True)
class JobReading:
    reading: PromptReading
    num_prompt: int
    _scores: list[TokenScore] = field(default_factory=list)
    """Not said yet."""
    _first: int = 0
    """Index of the first of them."""
    _sums: "array[float] | None" = None
    _num_rows: int = 0

    def add_rows(self, first: int, read: RowsRead) -> None:
        """As `engine.observer.EngineObserver.read`."""
        match read:
            case ScoredRows(scores=scores):
                if not self._scores:
                    self._first = first + 1
                self._scores += scores
            case SummedRows(num_rows=num_rows, values=values):
                sums = self._sums
                added = values if sums is None else map(float.__add__, sums, values)
                self._sums = array("d", added)
                self._num_rows += num_rows
            case _:
                assert_never(read)

    def take_messages(self, of: OfAttempt) -> list[PromptScores | PromptVector]:
        """What is new to say."""
        request, attempt = of.request, of.attempt
        scores, first, self._scores = self._scores, self._first, []
        messages = list[PromptScores | PromptVector]()
        for start in range(0, len(scores), SCORES_A_MESSAGE):
            piece = tuple(scores[start : start + SCORES_A_MESSAGE])
            messages.append(
                PromptScores(request=request, attempt=attempt, first=first + start, scores=piece)
            )
        due = len(rows_of(self.reading, num_prompt=self.num_prompt))
        if isinstance(self.reading, PoolPrompt) and self._sums and self._num_rows == due:
            values = _mean(self._sums, due)
            messages.append(PromptVector(request=request, attempt=attempt, values=values))
            self._sums = None
        return messages


@dataclass(slots=True, eq=False, kw_only=True)
class Job:
    """One attempt at a request that this worker has accepted."""

    router: RouterId
    request: RequestId
    attempt: int
    sequence: SequenceId
    """Its name inside this worker; never used again."""
    text: TextState
    deadline_at: float
    """On this process's monotonic clock."""
    num_tokens: int
    """Of the prompt and what was generated before."""
    ticket: Ticket | None
    """Where their KV is fetched."""
    transfers: Transfers
    mode: Mode
    reading: JobReading | None = None
    prefix_source: PrefixSource | None = None
    """Who is believed to have their beginning cached."""
    pull: PrefixPull | None = None
    """What became of that, once it is known."""
    fetch: FetchId | None = None
    """Of their KV, or of their beginning's."""
    lease: LeaseId | None = None
    """Under which their KV is lent."""
    failure: Failed | None = None
    """Why we abort it ourselves; said in place of Aborted."""
    emits: list[tuple[int, SampledToken, str]] = field(default_factory=list)
    """Index, token and its text, since the last flush."""

    @property
    def key(self) -> Key:
        return (self.router, self.request, self.attempt)


class RequestTable:
    """The jobs that have no ending yet, by request and by sequence. `send` hands a message to a
    router's link, from any thread."""

    def __init__(self, send: Callable[[RouterId, ToRouter], None]) -> None:
        self._send = send
        self._lock = threading.Lock()
        self._by_sequence: dict[SequenceId, Job] = {}
        self._by_key: dict[Key, Job] = {}
        self._spoken: dict[SequenceId, Job] = {}
        self._read: dict[SequenceId, Job] = {}
        self._endings: list[tuple[Job, RequestEnding]] = []

    def add_job(self, job: Job) -> bool:
        """Accepts it; False when this attempt is here already."""
        with self._lock:
            if job.key in self._by_key:
                return False
            self._by_key[job.key] = self._by_sequence[job.sequence] = job
            return True

    def of_sequence(self, sequence: SequenceId) -> Job | None:
        return self._by_sequence.get(sequence)

    def of_key(self, key: Key) -> Job | None:
        return self._by_key.get(key)

    def jobs(self) -> list[Job]:
        with self._lock:
            return list(self._by_sequence.values())

    def tell_router(self, router: RouterId, message: ToRouter) -> None:
        """Sends at once; from any thread."""
        self._send(router, message)

    def end_at_once(self, job: Job, ending: RequestEnding) -> None:
        """Ends a job that never reached the engine; from any thread."""
        if self._forget_job(job):
            self._send(job.router, ending)

    # -- the engine thread ------------------------------------------------------------------

    def add_token(self, job: Job, *, index: int, token: SampledToken) -> bool:
        """Notes a token. True when the text ends with it."""
        step = job.text.feed(token.token_id)
        job.emits.append((index, token, step.text))
        self._spoken[job.sequence] = job
        return step.stopped

    def add_rows(self, job: Job, *, first: int, read: RowsRead) -> None:
        """Notes what was read of its prompt."""
        assert job.reading is not None, "nothing is read of its prompt"
        job.reading.add_rows(first, read)
        self._read[job.sequence] = job

    def end_text(self, job: Job) -> None:
        """The last token of all gets the text still held back."""
        if job.emits:
            index, token, text = job.emits[-1]
            job.emits[-1] = (index, token, text + job.text.flush())

    def end_job(self, job: Job, ending: RequestEnding) -> None:
        """Notes the job's only ending. A second one is dropped."""
        if self._forget_job(job):
            self._endings.append((job, ending))

    def flush_step(self) -> int:
        """Sends what was noted: first what was read of prompts, then one Step per router, then the
        endings. Returns how many tokens it were."""
        num_tokens = 0
        if self._read:
            self._tell_read()
        if self._spoken:
            steps: dict[RouterId, list[Emit]] = {}
            for job in self._spoken.values():
                steps.setdefault(job.router, []).extend(_emits(job))
            self._spoken.clear()
            for router, emits in steps.items():
                num_tokens += len(emits)
                self._send(router, Step(emits=tuple(emits)))
        if self._endings:
            endings, self._endings = self._endings, []
            for job, ending in endings:
                self._send(job.router, ending)
                job.transfers.ending_told(job, ending)
        return num_tokens

    def _tell_read(self) -> None:
        for job in self._read.values():
            assert job.reading is not None
            of = OfAttempt(request=job.request, attempt=job.attempt)
            for message in job.reading.take_messages(of):
                self._send(job.router, message)
        self._read.clear()

    def _forget_job(self, job: Job) -> bool:
        with self._lock:
            self._by_key.pop(job.key, None)
            return self._by_sequence.pop(job.sequence, None) is not None


def check_request(message: Computation, *, vocab_size: int) -> None:
    """What a router should have refused: it would harm, or hold up, others of the batch. Raises
    ValueError."""
    sampling, grammar = message.sampling, message.sampling.grammar
    begins_after = () if grammar is None else grammar.begins_after
    if not message.token_ids:
        raise ValueError("token_ids: empty")
    for name, ids in (
        ("token_ids", message.token_ids),
        ("generated", message.generated),
        ("logit_bias", [token_id for token_id, _ in sampling.logit_bias]),
        ("stop_token_ids", sampling.stop_token_ids),
        ("allowed_token_ids", sampling.allowed_token_ids),
        ("marks", sampling.marks),
        ("begins_after", [token_id for run in begins_after for token_id in run]),
    ):
        if ids and not 0 <= min(ids) <= max(ids) < vocab_size:
            raise ValueError(f"{name}: not all in a vocabulary of {vocab_size}")
    for name in ("logit_bias", "stop_token_ids", "allowed_token_ids", "marks"):
        if len(getattr(sampling, name)) > vocab_size:
            raise ValueError(f"{name}: more than the {vocab_size} tokens that there are")
    biases = [bias for _, bias in sampling.logit_bias]
    if not all(map(math.isfinite, (*biases, *(getattr(sampling, name) for name in _FLOATS)))):
        raise ValueError(f"{', '.join(_FLOATS)}, logit_bias: not all are numbers")
    _check_reading(message)
    _check_prefix_source(message)
    if sampling.num_logprobs is not None and not 0 <= sampling.num_logprobs <= vocab_size:
        raise ValueError(f"num_logprobs: {sampling.num_logprobs} of {vocab_size}")
    if "" in sampling.stop or sum(map(len, sampling.stop)) > MAX_STOP_CHARS:
        raise ValueError(f"stop: an empty string, or more than {MAX_STOP_CHARS} characters in all")
    if grammar is not None and len(grammar.text) > MAX_GRAMMAR_CHARS:
        raise ValueError(f"grammar: more than {MAX_GRAMMAR_CHARS} characters")
    if not all(begins_after) or sum(map(len, begins_after)) > MAX_BEGINNING:
        raise ValueError(f"begins_after: a run of no token, or more than {MAX_BEGINNING} in all")


def _check_reading(message: Computation) -> None:
    max_tokens, reading = message.sampling.max_tokens, message.reading
    if isinstance(message, ReadPrompt):
        if message.generated or not 0 <= max_tokens <= 1:
            raise ValueError(f"max_tokens: {max_tokens} where a prompt is read, 0 or 1")
    elif max_tokens < 1:
        raise ValueError(f"max_tokens: {max_tokens}, at least 1")
    if isinstance(message, Decode) and message.fork_of and (message.ticket or reading):
        raise ValueError("fork_of: with a ticket, or with a reading")
    if reading is None:
        return
    if isinstance(message, Decode) and message.ticket is not None:
        raise ValueError("reading: of a prompt that is computed elsewhere")
    if isinstance(reading, ScorePrompt) and not (
        1 <= reading.first <= len(message.token_ids) and 0 <= reading.num_top <= MAX_TOP
    ):
        raise ValueError(f"reading: from token {reading.first} on, {reading.num_top} at each")


def _check_prefix_source(message: Computation) -> None:
    source = message.prefix_source
    if source is None:
        return
    if isinstance(message, Decode) and message.ticket is not None:
        raise ValueError("prefix_source: of a prompt that is computed elsewhere")
    if source.num_tokens < 0:
        raise ValueError(f"prefix_source: of {source.num_tokens} tokens")


def _emits(job: Job) -> list[Emit]:
    emits, job.emits = job.emits, []
    return [
        Emit(
            request=job.request,
            attempt=job.attempt,
            index=index,
            token_id=token.token_id,
            text=text,
            logprob=token.logprob,
            top=wire_top(token),
        )
        for index, token, text in emits
    ]


def wire_top(token: SampledToken) -> tuple[TokenLogprob, ...]:
    """The most likely tokens as a message carries them."""
    return tuple(TokenLogprob(token_id=id_, logprob=value) for id_, value in token.top)


def _mean(sums: "array[float]", num_rows: int) -> bytes:
    values = array("f", (value / num_rows for value in sums))
    if sys.byteorder == "big":
        values.byteswap()
    return values.tobytes()
