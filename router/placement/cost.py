"""What it costs to serve a request on given workers: every term, in seconds.

The formulas of docs/routing.md, for one worker or for arrays of them alike. options.c is the same
arithmetic in the same order, to the last bit, for all pairs of a fleet.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from router.placement.row import Rows

MAX_AGE_S = 1.0
"""A queue is believed to be worked off for this long after a report, twice the time between beats:
a worker that is silent for longer may stand still."""
EXPECTED_OUTPUT_TOKENS = 128
"""Most answers end long before `max_tokens`."""
COMING_STREAMS = 0.5
"""Streams that will come to a decode worker while it computes a prompt, beside those it has."""
STREAM_PART = 0.05
"""What a second is worth that comes bit by bit between the tokens of streams, all of them within
their target (`PlacementRules.inter_token_target_s` sees to that), beside one before a first token.
At 1 a prompt waits for a prefill worker so that streams nobody reads so fast stay a bit faster, and
beyond saturation everybody waits; docs/lab.md has the figures."""

Seconds = Any
"""A float, or an array of them: of the shape that the rows broadcast to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What a request asks of workers."""

    num_tokens: int
    """Prompt, and output so far: the context that is computed first."""
    max_output_tokens: int
    num_reusable: int
    """Of its first tokens, those whose KV may come from a cache."""

    @property
    def expected_output(self) -> int:
        return min(self.max_output_tokens, EXPECTED_OUTPUT_TOKENS)


@dataclass(frozen=True, slots=True)
class Breakdown:
    """The terms of one option. `first_token_s` is the time until its stream runs: of a pair until
    the decode worker has the KV, though the client has the first token before."""

    queue_s: Seconds
    """Until the prompt's turn: others are computed before it, or hold the KV room it needs."""
    pull_s: Seconds
    """Of a prefix fetched from a third worker, what the queue does not hide."""
    prefill_s: Seconds
    transfer_s: Seconds
    """Of the KV to the decode worker, what the prefill does not hide."""
    decode_wait_s: Seconds
    """Until the decode worker has KV room and has made its next step."""
    stream_s: Seconds
    """Of its own tokens, as many as are expected, one a step."""
    others_s: Seconds
    """By which the streams that run on the decode worker are delayed, all together."""
    inter_token_s: Seconds
    """Between two tokens of any stream there once this one runs; no part of the cost."""
    longest_step_s: Seconds
    """Between two of theirs while the prompt is computed there; 0 if it is not. Nor is this."""

    @property
    def first_token_s(self) -> Seconds:
        return self.queue_s + self.pull_s + self.prefill_s + self.transfer_s + self.decode_wait_s

    @property
    def cost_s(self) -> Seconds:
        return self.first_token_s + STREAM_PART * (self.stream_s + self.others_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """How a worker comes by the KV of the prompt: what it waits for, fetches and computes."""

    queue_s: Seconds
    pull_s: Seconds
    compute_s: Seconds
    """As if nothing else ran there."""
    num_uncached: Seconds
    num_pulled: Seconds


def num_uncached(demand: Demand, num_cached: Seconds) -> Seconds:
    """At least the last token is computed: its logits choose the next one."""
    return np.maximum(1.0, demand.num_tokens - num_cached)


def compute_s(worker: Rows, demand: Demand, uncached: Seconds) -> Seconds:
    """The last `uncached` tokens of the prompt, in chunks of a step, each token attending to all
    before it."""
    n, first = demand.num_tokens, demand.num_tokens - uncached
    attended = (n * n - first * first) * 0.5
    return (
        num_chunks(worker, uncached) * worker["fixed_s"]
        + uncached * worker["token_s"]
        + attended * worker["attended_s"]
    )


def num_chunks(worker: Rows, uncached: Seconds) -> Seconds:
    return np.ceil(uncached / worker["max_step_tokens"])


def queue_s(worker: Rows, *, now: float) -> Seconds:
    aged = np.minimum(now, worker["reported_at_s"] + MAX_AGE_S)
    return np.maximum(0.0, worker["busy_until_s"] - aged)


def missing_tokens(worker: Rows, needed: Seconds, num_cached: Seconds) -> Seconds:
    """For which the pool has no block now. Cached ones of this prompt may be free, and counted
    there, or shared with requests that hold them."""
    held = worker["pool_tokens"] - worker["free_tokens"]
    return np.maximum(0.0, needed - worker["free_tokens"] - np.minimum(num_cached, held))


def room_wait_s(worker: Rows, missing: Seconds) -> Seconds:
    """Running sequences free about one token each a step."""
    return missing * step_s(worker) / np.maximum(1.0, worker["running"])


def step_s(worker: Rows) -> Seconds:
    """Of the sequences that decode there."""
    return (
        worker["fixed_s"]
        + worker["context_tokens"] * worker["attended_s"]
        + worker["running"] * worker["sequence_s"]
    )


def longer_step_s(worker: Rows, demand: Demand) -> Seconds:
    """By what one more sequence of this context lengthens each step."""
    context = demand.num_tokens + 0.5 * demand.expected_output
    return context * worker["attended_s"] + worker["sequence_s"]


def chunk_s(worker: Rows, demand: Demand, uncached: Seconds) -> Seconds:
    """The longest chunk, its last, without what a step takes anyway."""
    chunk = np.minimum(uncached, worker["max_step_tokens"])
    attended = chunk * demand.num_tokens
    return chunk * worker["token_s"] + attended * worker["attended_s"]


def start(
    worker: Rows, demand: Demand, *, num_cached: Seconds, lent: Seconds, pull_s: Seconds, now: float
) -> Start:
    """`lent` tokens of the beginning could be had from a third worker in `pull_s`, while the prompt
    waits for its turn; 0 where there is none. Whatever is sooner."""
    missing = missing_tokens(worker, demand.num_tokens, num_cached)
    wait_s = np.maximum(queue_s(worker, now=now), room_wait_s(worker, missing))
    own = num_uncached(demand, num_cached)
    rest = num_uncached(demand, lent)
    own_s, rest_s = compute_s(worker, demand, own), compute_s(worker, demand, rest)
    shown_s = np.maximum(0.0, pull_s - wait_s)
    pulls = (lent > num_cached) & (shown_s + rest_s < own_s)
    return Start(
        queue_s=wait_s,
        pull_s=np.where(pulls, shown_s, 0.0),
        compute_s=np.where(pulls, rest_s, own_s),
        num_uncached=np.where(pulls, rest, own),
        num_pulled=np.where(pulls, lent - num_cached, 0.0),
    )


def fetch_s(worker: Rows, num_tokens: Seconds, *, latency_s: Seconds, rate: Seconds) -> Seconds:
    """The KV of so many tokens, at `rate` bytes a second."""
    return latency_s + num_tokens * worker["token_bytes"] / rate


def pair(
    prefill: Rows, decode: Rows, demand: Demand, begun: Start, *, num_cached: Seconds,
    latency_s: Seconds, rate: Seconds,
) -> Breakdown:  # fmt: skip
    """`begun` is of the prefill worker, `num_cached` of the decode worker, the speeds of what it
    fetches from the other."""
    moved = np.maximum(0.0, demand.num_tokens - num_cached)
    last = np.minimum(moved, np.minimum(begun.num_uncached, prefill["max_step_tokens"]))
    hidden_s = begun.compute_s * (1.0 - np.minimum(
        1.0, prefill["max_step_tokens"] / begun.num_uncached))  # fmt: skip
    last_s = last * decode["token_bytes"] / rate
    rest_s = moved * decode["token_bytes"] / rate - hidden_s
    stream = _stream(decode, demand, num_cached)
    return Breakdown(
        queue_s=begun.queue_s,
        pull_s=begun.pull_s,
        prefill_s=begun.compute_s,
        transfer_s=latency_s + np.maximum(last_s, rest_s),
        decode_wait_s=stream.room_s + stream.beside_s + stream.inter_token_s,
        stream_s=stream.own_s,
        others_s=stream.others_s,
        inter_token_s=stream.inter_token_s,
        longest_step_s=0.0,
    )


def alone(decode: Rows, demand: Demand, begun: Start) -> Breakdown:
    """`begun` is of the decode worker itself."""
    stream = _stream(decode, demand, 0.0)
    chunks = num_chunks(decode, begun.num_uncached)
    beside_s = chunks * (step_s(decode) - decode["fixed_s"])
    stalled_s = (begun.compute_s - chunks * decode["fixed_s"]) * (
        decode["running"] + COMING_STREAMS
    )
    return Breakdown(
        queue_s=begun.queue_s,
        pull_s=begun.pull_s,
        prefill_s=begun.compute_s + beside_s,
        transfer_s=0.0,
        decode_wait_s=stream.inter_token_s,
        stream_s=stream.own_s,
        others_s=stream.others_s + stalled_s,
        inter_token_s=stream.inter_token_s,
        longest_step_s=step_s(decode) + chunk_s(decode, demand, begun.num_uncached),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stream:
    """Decoding of one more sequence, and what it does to the others."""

    room_s: Seconds
    beside_s: Seconds
    """A prompt computed there lengthens the step that this one waits for."""
    inter_token_s: Seconds
    own_s: Seconds
    others_s: Seconds


def _stream(decode: Rows, demand: Demand, num_cached: Seconds) -> _Stream:
    longer_s = longer_step_s(decode, demand)
    inter_token_s = step_s(decode) + longer_s
    needed = demand.num_tokens + demand.expected_output
    missing = missing_tokens(decode, needed, num_cached)
    chunk = np.minimum(decode["waiting_tokens"], decode["max_step_tokens"])
    return _Stream(
        room_s=room_wait_s(decode, missing),
        beside_s=chunk * decode["token_s"],
        inter_token_s=inter_token_s,
        own_s=demand.expected_output * inter_token_s,
        others_s=demand.expected_output * longer_s * decode["running"],
    )
