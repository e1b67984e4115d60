"""Chooses the workers of one request.

Every cost is in seconds: what this request waits for, plus what it makes others wait for.
Either a prefill worker computes the prompt and a decode worker fetches it, or, when little is
left to compute, the decode worker does it alone (conditional disaggregation). The estimate is
first order (linear in tokens); it orders candidates, it does not promise a latency.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from protocol.ids import WorkerId
from protocol.messages import Role, Speeds

PRIOR_PREFILL_TOKENS_PER_S = 2_000.0
PRIOR_DECODE_STEP_S = 0.02
PRIOR_TRANSFER_BYTES_PER_S = 1e9
"""Used until a worker of the same role has measured its own: a small model on two CPU cores."""
TRANSFER_FLOOR_S = 0.002
"""What a hand-over costs whatever its size: three messages and a lease."""
EXPOSED_PART = 0.1
"""Of a transfer that overlaps prefill: the last chunk has nothing to hide behind."""
STALL_PART = 0.5
"""A prompt computed on a decode worker slows each stream there for half of its time: chunks
leave the others one token a step. Counted once even when idle, for the streams to come."""
BATCH_PART = 0.05
"""How much one more sequence lengthens a decode step (batch 8 takes 1.35 times batch 1)."""
EXPECTED_OUTPUT_TOKENS = 128
"""Most answers end long before `max_tokens`."""
PREFILL_SPARE_TOKENS = 2
"""The first token has to fit, and one more: at its limit an engine ends a text, and a prefill
worker would finish what it is to hand over."""
NUM_CONSIDERED = 8
"""Pairs are formed of the cheapest few of each role: 64 x 64 pairs would take milliseconds."""

Prefer = Literal["cheapest", "prefill"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One live, ready worker as this request sees it. Speeds are 0.0 until measured."""

    worker: WorkerId
    role: Role
    compat: str
    num_cached_tokens: int
    """Of this prompt, in whole blocks."""
    num_waiting_tokens: int
    """Prompt tokens queued there, those sent since its last beat included."""
    num_running: int
    num_free_blocks: int
    """Held by nobody; those with a cached prefix included."""
    num_blocks: int
    block_tokens: int
    token_bytes: int
    max_context_tokens: int
    transports: tuple[str, ...]
    """Ways that KV may travel to or from it: a pool on a GPU has others than one of a host."""
    prefill_tokens_per_s: float = 0.0
    decode_step_s: float = 0.0
    transfer_bytes_per_s: float = 0.0

    @property
    def longest_tokens(self) -> int:
        """Context it can hold. The KV of the very last token is never needed, but its block is
        counted: one spare."""
        return min(self.max_context_tokens, self.num_blocks * self.block_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """`prefill` None: `decode` works alone. `cost_s` is of the chosen option, and
    `num_uncached_tokens` what its prefill has to compute."""

    prefill: WorkerId | None
    decode: WorkerId
    reason: str
    cost_s: float
    num_uncached_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementRefusal:
    """`too_long`: no candidate can ever hold the request. `held`: not now, to keep it, or another,
    apart from others. `saturated`: every candidate has as much before it as it should; it waits
    here, where it can still go to whoever is free first."""

    why: Literal["no_decode_worker", "too_long", "held", "saturated"]
    reason: str


def place(
    candidates: Sequence[Candidate],
    *,
    num_tokens: int,
    max_output_tokens: int,
    prefer: Prefer = "cheapest",
) -> Placement | PlacementRefusal:
    """The cheapest option to serve `num_tokens` of context and up to `max_output_tokens` more.

    `prefer="prefill"` never lets a decode worker prefill while a prefill worker could.
    """
    total = num_tokens + max_output_tokens
    decodes = [c for c in candidates if c.role == "decode"]
    able = [c for c in decodes if total <= c.longest_tokens]
    if not able:
        return _refuse(decodes, total)
    priors = _priors(candidates)
    needed = num_tokens + PREFILL_SPARE_TOKENS
    prefills = [c for c in candidates if c.role == "prefill" and needed <= c.longest_tokens]
    request = _Request(num_tokens, min(max_output_tokens, EXPECTED_OUTPUT_TOKENS), priors)
    alone = min(request.alone(decode) for decode in able)
    pairs = request.pairs(prefills, able)
    if not pairs:
        note = " that KV could come from" if prefills else ""
        return _placement(alone, None, num_tokens, note=note)
    pair = min(pairs)
    if pair < alone:
        return _placement(pair, alone, num_tokens)
    if prefer == "prefill":
        return _placement(pair, alone, num_tokens, note=" (off)")
    return _placement(alone, pair, num_tokens)


def place_prompt(
    candidates: Sequence[Candidate], *, num_tokens: int, max_output_tokens: int
) -> Placement | PlacementRefusal:
    """The one worker, named as `decode`, that reads a prompt and generates nothing, or one token: a
    prefill worker if any can, the first to be done."""
    total = num_tokens + max_output_tokens
    able = [c for c in candidates if total <= c.longest_tokens]
    if not able:
        return _refuse(candidates, total)
    near = [c for c in able if c.role == "prefill"] or able
    request = _Request(num_tokens, 0, _priors(candidates))
    best = min(request.prompt(c) for c in near)
    return _placement(best, None, num_tokens, note=", for one worker reads the prompt")


@dataclass(frozen=True, slots=True, order=True)
class _Option:
    """Ordered by cost, ties by name."""

    cost_s: float
    decode: WorkerId
    prefill: WorkerId
    """"" when the decode worker is alone."""
    num_uncached_tokens: int


@dataclass(frozen=True, slots=True)
class _Request:
    num_tokens: int
    num_output_tokens: int
    priors: Speeds

    def alone(self, decode: Candidate) -> _Option:
        wait_s, compute_s = self._prompt_s(decode)
        stall_s = compute_s * STALL_PART * (decode.num_running + 1)
        cost_s = wait_s + compute_s + stall_s + self._stream_s(decode)
        return _Option(cost_s, decode.worker, WorkerId(""), self._num_uncached(decode))

    def prompt(self, candidate: Candidate) -> _Option:
        cost_s = sum(self._prompt_s(candidate))
        return _Option(cost_s, candidate.worker, WorkerId(""), self._num_uncached(candidate))

    def pairs(self, prefills: Sequence[Candidate], decodes: Sequence[Candidate]) -> list[_Option]:
        near_prefills = sorted(prefills, key=lambda p: (sum(self._prompt_s(p)), p.worker))
        near_decodes = sorted(decodes, key=lambda d: (self._decode_s(d), d.worker))
        return [
            self._pair(prefill, decode)
            for prefill in near_prefills[:NUM_CONSIDERED]
            for decode in near_decodes[:NUM_CONSIDERED]
            if _can_hand_over(prefill, decode)
        ]

    def _pair(self, prefill: Candidate, decode: Candidate) -> _Option:
        wait_s, compute_s = self._prompt_s(prefill)
        exposed_s = self._exposed_s(decode, hidden_s=compute_s)
        cost_s = wait_s + compute_s + TRANSFER_FLOOR_S + exposed_s + self._stream_s(decode)
        return _Option(cost_s, decode.worker, prefill.worker, self._num_uncached(prefill))

    def _num_uncached(self, candidate: Candidate) -> int:
        """At least the last token is computed: its logits choose the next one."""
        return max(1, self.num_tokens - candidate.num_cached_tokens)

    def _prompt_s(self, candidate: Candidate) -> tuple[float, float]:
        """Seconds before this prompt's turn, and of its own computing."""
        rate = candidate.prefill_tokens_per_s or self.priors.prefill_tokens_per_s
        missing = self._num_missing_tokens(candidate, self.num_tokens)
        wait_s = max(candidate.num_waiting_tokens, missing) / rate
        return wait_s, self._num_uncached(candidate) / rate

    def _exposed_s(self, decode: Candidate, *, hidden_s: float) -> float:
        """The prefill computes while most of its blocks are already on their way."""
        rate = decode.transfer_bytes_per_s or self.priors.transfer_bytes_per_s
        moved = max(0, self.num_tokens - decode.num_cached_tokens) * decode.token_bytes
        transfer_s = moved / rate
        return max(transfer_s - hidden_s, transfer_s * EXPOSED_PART)

    def _stream_s(self, decode: Candidate) -> float:
        """Slower steps for this stream and, by as much again, for those beside it; and the
        wait for blocks that running sequences free one token a step."""
        step_s = decode.decode_step_s or self.priors.decode_step_s
        crowd_s = 2 * BATCH_PART * step_s * self.num_output_tokens * decode.num_running
        missing = self._num_missing_tokens(decode, self.num_tokens + self.num_output_tokens)
        return crowd_s + missing * step_s / max(1, decode.num_running)

    def _decode_s(self, decode: Candidate) -> float:
        return self._stream_s(decode) + self._exposed_s(decode, hidden_s=0.0)

    @staticmethod
    def _num_missing_tokens(candidate: Candidate, needed: int) -> int:
        """Tokens for which the pool has no block at the moment. Cached ones of this prompt may
        be free, and counted there, or shared with requests that hold them."""
        num_held_blocks = candidate.num_blocks - candidate.num_free_blocks
        held = num_held_blocks * candidate.block_tokens
        free = candidate.num_free_blocks * candidate.block_tokens
        return max(0, needed - free - min(candidate.num_cached_tokens, held))


def _can_hand_over(prefill: Candidate, decode: Candidate) -> bool:
    shared = set(prefill.transports) & set(decode.transports)
    return prefill.compat == decode.compat and bool(shared)


def _refuse(decodes: Sequence[Candidate], total: int) -> PlacementRefusal:
    if not decodes:
        return PlacementRefusal(why="no_decode_worker", reason="no decode worker")
    room = max(c.longest_tokens for c in decodes)
    text = f"{total} tokens with the answer; the largest decode worker holds {room}"
    return PlacementRefusal(why="too_long", reason=text)


def _priors(candidates: Sequence[Candidate]) -> Speeds:
    """For a worker not yet measured: the mean of its peers, whatever their role, else guesses."""
    prefills = [candidate.prefill_tokens_per_s for candidate in candidates]
    steps = [candidate.decode_step_s for candidate in candidates]
    transfers = [candidate.transfer_bytes_per_s for candidate in candidates]
    return Speeds(
        prefill_tokens_per_s=_mean(prefills, PRIOR_PREFILL_TOKENS_PER_S),
        decode_step_s=_mean(steps, PRIOR_DECODE_STEP_S),
        transfer_bytes_per_s=_mean(transfers, PRIOR_TRANSFER_BYTES_PER_S),
    )


def _mean(values: Sequence[float], prior: float) -> float:
    measured = [value for value in values if value > 0]
    return sum(measured) / len(measured) if measured else prior


def _placement(
    option: _Option, other: _Option | None, num_tokens: int, *, note: str = ""
) -> Placement:
    name = f"{option.prefill}>{option.decode}" if option.prefill else option.decode
    if other is None:
        compared = f"no prefill worker{note}"
    else:
        compared = f"{option.cost_s:.3f} s against {other.cost_s:.3f} s "
        compared += f"by {other.prefill}" if other.prefill else f"local{note}"
    text = f"{name}; uncached {option.num_uncached_tokens} of {num_tokens} tokens; {compared}"
    reason = "".join(char if " " <= char <= "~" else "?" for char in text)
    return Placement(
        prefill=option.prefill or None,
        decode=option.decode,
        reason=reason,
        cost_s=option.cost_s,
        num_uncached_tokens=option.num_uncached_tokens,
    )
