"""Simulated engines: workers that register in Redis and speak Baton's protocol, with a text that is
there beforehand in place of a model.

    python -m bench.router_sim.engines --redis URL --model DIR --decode 2 --pace-ms 20

Token i of a request is token `seed + i` of a corpus, so a client can foretell its text; it is
detokenised as a worker does it. A request's first token comes at once, then one with each step:
the engines' steps are spread over the pace. Prompts take no time. Blocks are counted, not kept.
Prints `ready` when all are registered.
"""

import argparse
import asyncio
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import uvloop

from bench.router_sim.answers import Answers
from protocol.channel.port import Arrival, RouterGone, RouterJoined, RouterMessage, RouterPort
from protocol.codec import WIRE_VERSION
from protocol.ids import LeaseId, RequestId, RouterId, WorkerId, new_epoch
from protocol.layout import KvLayout
from protocol.membership import Membership
from protocol.messages import (
    Abort,
    Aborted,
    AskText,
    Beat,
    Blocks,
    Computation,
    Decode,
    Emit,
    Finished,
    Landed,
    Load,
    Prefill,
    PrefillDone,
    Registration,
    Role,
    Speeds,
    Started,
    Step,
    Ticket,
)
from protocol.store.address import RedisAddress
from protocol.store.workers import Store
from protocol.text.packed_text import PackedText
from protocol.text.tokenizer import TextState, Tokenizer

LAYOUT = KvLayout(
    num_layers=32, num_kv_heads=8, head_dim=128, block_tokens=16, dtype="bfloat16"
)  # of an 8-billion-parameter Llama
NUM_BLOCKS = 200_000
BEAT_S = 0.5
PREFILL_TOKENS_PER_S = 50_000.0
TRANSFER_BYTES_PER_S = 20e9


@dataclass(slots=True)
class Stream:
    """One request that decodes."""

    router: RouterId
    request: RequestId
    attempt: int
    seed: int
    index: int
    """Of its next token."""
    num_tokens: int
    num_blocks: int
    text: TextState

    @property
    def key(self) -> tuple[RequestId, int]:
        return self.request, self.attempt


class Engine:
    """One worker. `run()` it in a TaskGroup."""

    def __init__(
        self, name: str, role: Role, *, tokenizer: Tokenizer, text: PackedText, answers: Answers,
        pace_s: float,
    ) -> None:  # fmt: skip
        self.id, self.role, self.epoch = WorkerId(name), role, new_epoch()
        self._tokenizer = tokenizer
        self._text = text
        self._answers = answers
        self._pace_s = pace_s
        self._streams: dict[tuple[RequestId, int], Stream] = {}
        self._fresh: list[Stream] = []
        self._num_held = 0
        self._received: dict[RouterId, int] = defaultdict(int)
        self._port = RouterPort()
        self.registration = Registration(
            worker=self.id, epoch=self.epoch, role=role, pid=1, host="127.0.0.1",
            address=f"tcp://127.0.0.1:{self._port.port}", model="bench-router", compat="same",
            layout=LAYOUT, num_blocks=NUM_BLOCKS, max_context_tokens=32_768, transports=("tcp",),
            text=text.digest, wire=WIRE_VERSION,
        )  # fmt: skip

    async def run(self, store: Store, *, first_step_s: float) -> None:
        membership = Membership(store, worker=self.id, epoch=self.epoch)
        beat = self._beat
        async with self._port.serve(self.registration), asyncio.TaskGroup() as tasks:
            tasks.create_task(membership.run(self.registration, lambda: beat(0)), name="presence")
            tasks.create_task(self._beats(), name="beats")
            tasks.create_task(self._steps(first_step_s), name="steps")
            while True:
                self._accept(await self._port.receive())

    def _beat(self, num_received: int) -> Beat:
        free = NUM_BLOCKS - self._num_held
        return Beat(
            epoch=self.epoch,
            state="ready",
            blocks=Blocks(total=NUM_BLOCKS, free=free, cached=0, leased=0),
            load=Load(running=len(self._streams), waiting=0, waiting_tokens=0),
            speeds=Speeds(
                prefill_tokens_per_s=PREFILL_TOKENS_PER_S,
                decode_step_s=self._pace_s,
                transfer_bytes_per_s=TRANSFER_BYTES_PER_S,
            ),
            transports_used=(),
            num_received=num_received,
        )

    async def _beats(self) -> None:
        while True:
            for router in self._port.routers:
                self._port.send(router, self._beat(self._received[router]))
            await asyncio.sleep(BEAT_S)

    def _accept(self, arrival: Arrival) -> None:
        match arrival:
            case RouterJoined(router):
                self._received[router] = 0
                self._port.send(router, self._beat(0))
            case RouterGone(router):
                for stream in [one for one in self._streams.values() if one.router == router]:
                    self._end(stream)
            case RouterMessage(router, Abort() as abort):
                found = self._streams.get((abort.request, abort.attempt))
                if found is not None:
                    self._end(found)
                    self._port.send(router, Aborted(request=abort.request, attempt=abort.attempt))
            case RouterMessage(router, AskText() as asked):
                self._port.send(router, self._text.part(asked))
            case RouterMessage(router, message):
                assert not isinstance(message, Abort | AskText)
                self._received[router] += 1
                self._begin(router, message)

    def _begin(self, router: RouterId, message: Computation) -> None:
        if isinstance(message, Prefill):
            self._prefill(router, message)
            return
        sampling, num_prompt = message.sampling, len(message.token_ids)
        stream = Stream(
            router, message.request, message.attempt, sampling.seed, 0, sampling.max_tokens,
            -(-(num_prompt + sampling.max_tokens) // LAYOUT.block_tokens),
            TextState(self._tokenizer, sampling),
        )  # fmt: skip
        for _ in message.generated:
            self._next(stream)
        if isinstance(message, Decode) and message.ticket is not None:
            self._land(stream, num_prompt)
        self._streams[stream.key] = stream
        self._num_held += stream.num_blocks
        if not self._fresh:
            asyncio.get_running_loop().call_soon(self._step_fresh)
        self._fresh.append(stream)

    def _land(self, stream: Stream, num_prompt: int) -> None:
        num_blocks = -(-num_prompt // LAYOUT.block_tokens)
        landed = Landed(
            request=stream.request, attempt=stream.attempt, transport="tcp", blocks_reused=0,
            blocks_moved=num_blocks, bytes_moved=num_blocks * LAYOUT.block_bytes, fetch_s=0.0,
            exposed_s=0.0,
        )  # fmt: skip
        self._port.send(stream.router, landed)

    def _prefill(self, router: RouterId, message: Prefill) -> None:
        request, attempt = message.request, message.attempt
        ticket = Ticket(
            worker=self.id, epoch=self.epoch, lease=LeaseId(1), layout=LAYOUT, compat="same",
            address=self.registration.address, num_tokens=len(message.token_ids),
        )  # fmt: skip
        started = Started(
            request=request, attempt=attempt, ticket=ticket, cached_tokens=0, queued_s=0.0
        )
        self._port.send(router, started)
        sampling = message.sampling
        stream = Stream(
            router, message.request, message.attempt, sampling.seed, 0, sampling.max_tokens, 0,
            TextState(self._tokenizer, sampling),
        )  # fmt: skip
        for _ in message.generated:
            self._next(stream)
        self._port.send(router, Step(emits=(self._next(stream),)))
        done = PrefillDone(
            request=request, attempt=attempt, cached_tokens=0, queued_s=0.0, prefill_s=0.0
        )
        self._port.send(router, done)

    async def _steps(self, first_step_s: float) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + first_step_s
        while True:
            await asyncio.sleep(due - loop.time())
            due = max(due + self._pace_s, loop.time())
            new = set(map(id, self._fresh))
            self._step([one for one in self._streams.values() if id(one) not in new])

    def _step_fresh(self) -> None:
        fresh, self._fresh = self._fresh, []
        self._step([one for one in fresh if one.key in self._streams])

    def _step(self, streams: list[Stream]) -> None:
        """One token of each: a message for each router."""
        emits: dict[RouterId, list[Emit]] = defaultdict(list)
        ended = []
        for stream in streams:
            emits[stream.router].append(self._next(stream))
            if stream.index >= stream.num_tokens:
                ended.append(stream)
        for router, its in emits.items():
            self._port.send(router, Step(emits=tuple(its)))
        for stream in ended:
            self._end(stream)
            self._port.send(stream.router, _finished(stream))

    def _next(self, stream: Stream) -> Emit:
        index = stream.index
        token = self._answers.token(stream.seed, index)
        stream.index += 1
        text = stream.text.feed(token).text
        if stream.index == stream.num_tokens:
            text += stream.text.flush()
        return Emit(
            request=stream.request, attempt=stream.attempt, index=index, token_id=token,
            text=text, logprob=None, top=(),
        )  # fmt: skip

    def _end(self, stream: Stream) -> None:
        self._num_held -= self._streams.pop(stream.key).num_blocks


def _finished(stream: Stream) -> Finished:
    return Finished(
        request=stream.request, attempt=stream.attempt, reason="length",
        num_tokens=stream.num_tokens, cached_tokens=0, queued_s=0.0, prefill_s=0.0, decode_s=0.0,
    )  # fmt: skip


async def serve(
    *, redis: str, model: Path, num_prefill: int, num_decode: int, pace_s: float
) -> None:
    store, tokenizer = Store(RedisAddress(url=redis)), Tokenizer.load(model)
    answers, text = Answers(tokenizer), PackedText.read(model)
    prefill: list[Role] = ["prefill"] * num_prefill
    decode: list[Role] = ["decode"] * num_decode
    roles = prefill + decode
    async with asyncio.TaskGroup() as tasks:
        for number, role in enumerate(roles):
            engine = Engine(
                f"{role}-{number}", role, tokenizer=tokenizer, text=text, answers=answers,
                pace_s=pace_s,
            )  # fmt: skip
            first_step_s = pace_s * number / len(roles)
            tasks.create_task(engine.run(store, first_step_s=first_step_s), name=engine.id)
        while len(await store.list_workers()) < len(roles):  # noqa: ASYNC110 - no event says so
            await asyncio.sleep(0.05)
        print("ready", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--redis", required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--prefill", type=int, default=0)
    parser.add_argument("--decode", type=int, default=1)
    parser.add_argument("--pace-ms", type=float, default=20.0)
    options = parser.parse_args()
    serving = serve(
        redis=options.redis, model=options.model, num_prefill=options.prefill,
        num_decode=options.decode, pace_s=options.pace_ms / 1e3,
    )  # fmt: skip
    uvloop.run(serving)


if __name__ == "__main__":
    main()
