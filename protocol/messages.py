"""Everything the router and the workers say to each other: closed unions, one per link.

Frozen msgspec structs, told apart by an integer tag. `protocol.codec` packs them; adding one
breaks the type check wherever a `match` does not handle it. Times that cross a process are
remaining seconds, never clock readings.
"""

from collections.abc import Container, Iterable
from typing import Annotated, Literal

import msgspec

from protocol.ids import Epoch, LeaseId, RequestId, RouterId, WorkerId
from protocol.layout import KvLayout, Layout
from protocol.readings import PromptReading, TokenId, TokenScore

Role = Literal["prefill", "decode"]
WorkerState = Literal["ready", "draining"]
FinishReason = Literal["stop", "length"]
FailCode = Literal[
    "overloaded", "source_lost", "too_long", "deadline", "invalid", "internal", "broken", "grammar"
]
"""`invalid`: what a router should have refused. `broken`: the worker exits, and whatever it had is
lost with it. `grammar`: no token goes on with the text that its grammar asks for."""


class Grammar(msgspec.Struct, frozen=True, kw_only=True):
    """What the output must be a text of."""

    text: str
    """As llguidance reads it: Lark, or its JSON."""
    begins_after: tuple[tuple[int, ...], ...] = ()
    """It begins with the token after any of these runs of tokens was generated; until then all is
    allowed. Empty: with the first."""


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """How to choose tokens and when to stop. The router has checked every range and filled in
    `seed`, so a worker that continues a request chooses as the one before it would have."""

    seed: int
    max_tokens: int
    """0: the prompt alone is computed."""
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0: all."""
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    num_logprobs: int | None = None
    """None: none; 0: of the chosen token; n: also of the n most likely."""
    min_tokens: int = 0
    ignore_eos: bool = False
    """Not where there is a grammar, which says itself when its text may end."""
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop: bool = False
    skip_special_tokens: bool = True
    allowed_token_ids: tuple[int, ...] = ()
    """No others are sampled. Empty: all may be."""
    grammar: Grammar | None = None
    marks: tuple[int, ...] = ()
    """Tokens without a text of their own, at which the text is cut: with one comes all the text
    before it, and no stop string goes over it."""

    def may_end(self, num_before: int) -> bool:
        """Whether a token with so many generated before it may end the text."""
        return num_before >= self.min_tokens

    def ending_ids(self, eos_token_ids: Iterable[int]) -> frozenset[int]:
        """The tokens that end the text where one may (`may_end`)."""
        ignored = self.ignore_eos and self.grammar is None
        return frozenset((*self.stop_token_ids, *(() if ignored else eos_token_ids)))

    def reason_to_end(
        self, token_id: int, num_tokens: int, ending_ids: Container[int]
    ) -> FinishReason | None:
        """Why the text ends with this token, its `num_tokens`-th; None: it goes on, unless a stop
        string ends it (`protocol.text.stop`) or the context's end."""
        if token_id in ending_ids and self.may_end(num_tokens - 1):
            return "stop"
        return "length" if num_tokens >= self.max_tokens else None


class Ticket(msgspec.Struct, frozen=True, kw_only=True):
    """The right to fetch one request's blocks from their source, until the lease runs out."""

    worker: WorkerId
    epoch: Epoch
    lease: LeaseId
    address: str
    """Where the source's control socket listens, e.g. `tcp://127.0.0.1:40001`."""
    layout: Layout
    compat: str
    num_tokens: int
    """Prompt tokens whose KV the source will have; blocks are indexed from token 0."""


class PrefixSource(msgspec.Struct, frozen=True, kw_only=True):
    """Another worker that has the KV of a prompt's beginning in its prefix cache, for now."""

    worker: WorkerId
    epoch: Epoch
    address: str
    """Where its control socket listens (`Registration.kv_address`)."""
    num_tokens: int
    """From token 0, in whole blocks: what it is believed to have."""


PullOutcome = Literal["landed", "declined", "lost", "late", "aborted", "refused"]
"""`declined`: the source had no more of it, or lent no more. `refused`: it was never begun."""


class PrefixPull(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a `PrefixSource`. Whatever did not come was computed."""

    source: WorkerId
    num_tokens: int
    """Prompt tokens whose KV came from there."""
    seconds: float
    outcome: PullOutcome


class OfAttempt(msgspec.Struct, frozen=True, kw_only=True):
    """Whatever is said of one attempt at a request."""

    request: RequestId
    attempt: int


# -- router -> worker ---------------------------------------------------------------------


class Hello(msgspec.Struct, frozen=True, kw_only=True, tag=1):
    """First message on a link; the worker answers with `Welcome`."""

    router: RouterId
    version: int


class Ping(msgspec.Struct, frozen=True, kw_only=True, tag=2):
    """Sent every second. A worker aborts the requests of a router silent too long."""

    num_workers: int = 1
    """That report to this router: the more they are, the less often each one may."""


class ToCompute(OfAttempt, frozen=True, kw_only=True):
    """What either kind of worker is asked to do with a request."""

    token_ids: tuple[int, ...]
    generated: tuple[int, ...]
    """Tokens the client already has, when a request continues after a worker was lost."""
    sampling: Sampling
    salt: str
    deadline_s: float
    priority: int = 0
    """The lower, the sooner it is served where not all can be."""
    reading: PromptReading | None = None
    """What is said of the prompt besides, by whoever computes it."""
    prefix_source: PrefixSource | None = None
    """Whoever computes the prompt fetches from there what its own cache lacks of the beginning, and
    computes what does not come."""


class Prefill(ToCompute, frozen=True, kw_only=True, tag=3):
    """Compute these tokens, keep their blocks for decode, sample one token."""


class Decode(ToCompute, frozen=True, kw_only=True, tag=4):
    """Generate tokens. With a ticket fetch the prompt's blocks, without one compute them."""

    ticket: Ticket | None
    fork_of: OfAttempt | None = None
    """A request of the same prompt that this worker was told of before: go on from its KV, as soon
    as that is here. Without a ticket and a reading. If that one ends before, so does this one, as
    `source_lost`; where it is not known any more the prompt is computed."""


class Abort(OfAttempt, frozen=True, kw_only=True, tag=5):
    reason: str


class ReadPrompt(ToCompute, frozen=True, kw_only=True, tag=6):
    """Compute these tokens for what is read of them, and generate one token at most: there is
    nothing for another worker to do. `generated` is empty."""


class AskText(msgspec.Struct, frozen=True, kw_only=True, tag=7):
    """Send a part of the files that make text of this worker's tokens, as a `TextPart`."""

    digest: str
    """As of `ServedVersion.text`."""
    index: int = 0
    """The parts are counted from 0; how many there are says the first."""


Computation = Prefill | Decode | ReadPrompt
ToWorker = Hello | Ping | Computation | Abort | AskText

# -- worker -> router ---------------------------------------------------------------------


class Blocks(msgspec.Struct, frozen=True, kw_only=True):
    """A pool's blocks. `free` ones are empty. `cached` ones keep a prefix, are held by nobody and
    are taken when `free` ones run out: a pool that has served for a while is mostly these. The
    rest is held by requests, leases or fetches: `free + cached == total` when idle."""

    total: int
    free: int
    cached: int
    leased: int


class StepModel(msgspec.Struct, frozen=True, array_like=True):
    """What a step of an engine takes: `fixed_s + token_s * T + attended_s * A + sequence_s * B` for
    T prompt tokens computed, B sequences that decode, and A the sum, over all tokens of the step,
    of the context each attends to. So a prompt of n tokens, c of them cached, is T = n - c and
    A = (n^2 - c^2) / 2, and a decode step A = the sum of its contexts."""

    fixed_s: float = 0.0
    token_s: float = 0.0
    attended_s: float = 0.0
    sequence_s: float = 0.0


class Speeds(msgspec.Struct, frozen=True, kw_only=True):
    """Measured, smoothed; 0 until measured."""

    prefill_tokens_per_s: float
    decode_step_s: float
    transfer_bytes_per_s: float
    """Of KV that it fetched, over the time in which bytes flowed: waits for a prefill that still
    computes are no part of it, the time that such a prefill hides is."""
    transfer_latency_s: float = 0.0
    """Of a fetch, whatever its size."""
    step: StepModel = StepModel()
    """All zero until calibrated."""


class Load(msgspec.Struct, frozen=True, kw_only=True):
    running: int
    waiting: int
    waiting_tokens: int
    """Prompt tokens not yet computed, of waiting and running requests."""
    context_tokens: int = 0
    """Of all sequences that decode, the sum of their contexts."""


class ServedVersion(msgspec.Struct, frozen=True, kw_only=True):
    """What a request is answered by to its end, by whichever workers: weights and the text that
    goes with them. Of one `model` several may be served side by side."""

    model: str
    """Its name in the API."""
    revision: str
    """Of its weights: the hub's commit, or a digest of what lies in the folder."""
    text: str
    """Digest of the files that make text of tokens and tokens of text
    (`protocol.text.text_files`)."""


class Registration(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker is. Written to Redis under its id and sent in `Welcome`."""

    worker: WorkerId
    epoch: Epoch
    role: Role
    pid: int
    host: str
    address: str
    """Where routers connect, e.g. `tcp://127.0.0.1:40000`."""
    model: str
    compat: str
    layout: KvLayout
    num_blocks: int
    max_context_tokens: int
    transports: tuple[str, ...]
    dynamic_after: int | None = None
    """As of `protocol.blocks.prompt_reach`."""
    kv_address: str = ""
    """Where its blocks may be fetched by `PrefixSource`; "" where they may not."""
    max_step_tokens: int = 0
    """Prompt tokens that one step computes at most; 0: not known."""
    is_prefix_closed: bool = False
    """After each of its block events, it has what comes before every block that it has."""
    revision: str = ""
    text: str = ""
    """As of `ServedVersion`."""
    wire: int = 7
    """The version of the wire that it speaks; 7: from before it was said."""

    @property
    def version(self) -> ServedVersion:
        return ServedVersion(model=self.model, revision=self.revision, text=self.text)


class Welcome(msgspec.Struct, frozen=True, kw_only=True, tag=1):
    registration: Registration
    version: int


class TransportUse(msgspec.Struct, frozen=True, kw_only=True):
    """KV that moved between a worker and one peer by one transport."""

    name: str
    peer: WorkerId
    why: str
    """Why this transport and not an earlier one of the settings, as the fetching side found it."""
    fetches: int
    bytes: int
    bytes_per_s: float = 0.0
    """Of this pair, as of `Speeds`; 0 until measured, and on the lending side."""
    latency_s: float = 0.0


class Beat(msgspec.Struct, frozen=True, kw_only=True, tag=2):
    """Sent every half second to every router, and at once when the state changes."""

    epoch: Epoch
    state: WorkerState
    blocks: Blocks
    load: Load
    speeds: Speeds
    transports_used: tuple[tuple[str, int], ...]
    """Fetches completed so far by each transport."""
    transports: tuple[TransportUse, ...] = ()
    """The same by peer, those used last, the latest first; a bounded number of them."""
    num_received: int = 0
    """Computations that this worker had received from this router on this link when it wrote this:
    `load` counts those, and not what was sent after them."""
    unreachable: tuple[WorkerId, ...] = ()
    """Peers from which no KV came when this worker last tried; a bounded number of them."""


class Started(OfAttempt, frozen=True, kw_only=True, tag=3):
    """Prefill has begun computing: decode may begin fetching."""

    ticket: Ticket
    cached_tokens: int
    """As of `Finished`."""
    queued_s: float
    pull: PrefixPull | None = None
    """As of `Finished`."""


class TokenLogprob(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False):
    token_id: TokenId
    logprob: float


class Token(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False):
    """`text` may lag behind (held back until it cannot be part of a stop string or of an unfinished
    character); for a given token sequence it never differs."""

    index: Annotated[int, msgspec.Meta(ge=0)]
    """0 is the first token after the prompt. The router drops what it already has."""
    token_id: TokenId
    text: str
    logprob: float | None
    top: tuple[TokenLogprob, ...]


class Emit(Token, frozen=True, kw_only=True, array_like=True, gc=False):
    """One token of one request."""

    request: RequestId
    attempt: int


class Landed(OfAttempt, frozen=True, kw_only=True, tag=4):
    """Decode has all blocks. Seconds are of the fetch, and of its part after prefill ended."""

    transport: str
    blocks_reused: int
    blocks_moved: int
    bytes_moved: int
    fetch_s: float
    exposed_s: float


class Finished(OfAttempt, frozen=True, kw_only=True, tag=5):
    reason: FinishReason
    stopped_by: int | str | None = None
    """The token of `stop_token_ids`, or the stop string, that ended the text; None for the end of
    text."""
    num_tokens: int
    """Output tokens in all, those of earlier attempts included: a router that has fewer missed
    some."""
    cached_tokens: int
    """Prompt tokens this worker did not compute because its own prefix cache had them."""
    queued_s: float
    prefill_s: float
    decode_s: float
    pull: PrefixPull | None = None
    """None: nobody was named to pull from."""


class Failed(OfAttempt, frozen=True, kw_only=True, tag=6):
    code: FailCode
    message: str
    retryable: bool


class Aborted(OfAttempt, frozen=True, kw_only=True, tag=7):
    """Nobody wants it any more."""


class Step(msgspec.Struct, frozen=True, kw_only=True, tag=8):
    """All that one engine step has for one router: a single message, whatever the batch."""

    emits: tuple[Emit, ...]


class PrefillDone(OfAttempt, frozen=True, kw_only=True, tag=9):
    """The prefill leg ended well: its token is out and its blocks wait under the lease."""

    cached_tokens: int
    queued_s: float
    prefill_s: float


class PromptScores(OfAttempt, frozen=True, kw_only=True, tag=10):
    """Tokens of the prompt, in order and without gaps; before the first token after it is said."""

    first: int
    scores: tuple[TokenScore, ...]


class PromptVector(OfAttempt, frozen=True, kw_only=True, tag=11):
    values: bytes
    """float32, little endian, as pooled: of any length, but for rounding as the model has it."""


class LoadReport(msgspec.Struct, frozen=True, kw_only=True, tag=12):
    """A small part of a Beat, sent soon after what others asked for has changed it, so that two
    routers do not choose one worker because neither sees the other's choice."""

    num_received: int
    """As of `Beat`."""
    running: int
    waiting: int
    waiting_tokens: int
    context_tokens: int
    num_free_blocks: int
    """Empty and cached ones."""


class TextPart(msgspec.Struct, frozen=True, kw_only=True, tag=13):
    """A piece of a packed archive of text files (`protocol.text.text_files`)."""

    digest: str
    index: int
    num_parts: int
    """0: this worker has no text of that digest."""
    data: bytes


ToRouter = (
    Welcome | Beat | Started | Landed | Finished | Failed | Aborted | Step | PrefillDone
    | PromptScores | PromptVector | LoadReport | TextPart
)  # fmt: skip


class FirstToken(msgspec.Struct, frozen=True, kw_only=True):
    """Prefill -> decode, as the note that comes with the last KV block: what was sampled."""

    token_id: int
    logprob: float | None
    top: tuple[TokenLogprob, ...]
