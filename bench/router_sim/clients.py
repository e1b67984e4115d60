"""Clients that read answers as they come: one connection a request, what came and when.

They share one event loop, on a core that the router does not have. A read is one look at the clock;
what it says is looked at afterwards.
"""

import asyncio
import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

_CONTENT = re.compile(rb'"(?:content|text)":"(?=[^"])')
"""Of a chunk that shows some text."""
_CHUNK = re.compile(rb"data: (\{.*?\})\r?\n")
_END = b"data: [DONE]"


@dataclass(slots=True)
class Answer:
    """One request, and what came of it. Times are of `time.perf_counter`."""

    sent_at: float = 0.0
    reads: list[tuple[float, bytes]] = field(default_factory=list)
    is_whole: bool = False
    error: str = ""

    @property
    def num_chunks(self) -> int:
        return sum(read.count(b"data: {") for _, read in self.reads)

    def first_s(self) -> float:
        """Seconds from sending to the first text."""
        return next(at for at, read in self.reads if _CONTENT.search(read)) - self.sent_at

    def gaps_s(self) -> list[float]:
        """Seconds between two texts; none between those that came together."""
        gaps, before = [], None
        for at, read in self.reads:
            num = len(_CONTENT.findall(read))
            if num and before is not None:
                gaps.append(at - before)
            gaps += [0.0] * (num - 1)
            before = at if num else before
        return gaps

    def text(self) -> str:
        """Raises ValueError for what is no answer."""
        pieces = []
        for chunk in _CHUNK.findall(b"".join(read for _, read in self.reads)):
            for choice in json.loads(chunk)["choices"]:
                delta = choice.get("delta", choice)
                pieces.append(delta.get("content") or delta.get("text") or "")
        return "".join(pieces)


class Client(asyncio.Protocol):
    """One request; `done` when its answer has ended, well or not."""

    def __init__(self, request: bytes) -> None:
        self.answer = Answer()
        self.done: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._request = request

    def send(self) -> None:
        self.answer.sent_at = time.perf_counter()
        self._transport.write(self._request)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own is of no such class

    def data_received(self, data: bytes) -> None:
        self.answer.reads.append((time.perf_counter(), data))
        if _END in data:
            self.answer.is_whole = True
            self._transport.close()
        elif data.endswith(b"\r\n0\r\n\r\n"):  # ended without it: by an error
            self._transport.close()
        elif len(self.answer.reads) == 1 and b" 200 OK" not in data[:20]:
            self.answer.error = data.decode(errors="replace")
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_result(self.answer)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """One request to be made."""

    prompt: str
    seed: int
    num_tokens: int
    model: str

    def request(self, *, stream: bool = True) -> bytes:
        fields: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": self.prompt}],
            "max_tokens": self.num_tokens,
            "seed": self.seed,
            "ignore_eos": True,
            "stream": stream,
            "temperature": 0,
        }
        body = json.dumps(fields).encode()
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            "Content-Type: application/json\r\nUser-Agent: bench\r\nAccept: */*\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


async def connect(port: int, requests: Sequence[bytes]) -> list[Client]:
    """A client for each, connected; nothing is sent yet."""
    loop = asyncio.get_running_loop()
    clients = []
    for request in requests:
        _, client = await loop.create_connection(partial(Client, request), "127.0.0.1", port)
        clients.append(client)
    return clients


async def answers(clients: Sequence[Client], *, within_s: float) -> list[Answer]:
    """All answers. TimeoutError after `within_s`; SystemExit for one that is no answer."""
    async with asyncio.timeout(within_s):
        got = [await client.done for client in clients]
    for answer in got:
        if not answer.is_whole:
            raise SystemExit(f"no whole answer: {answer.error or answer.reads[-1:]}")
    return got


async def one_after_another(port: int, requests: Sequence[bytes]) -> list[Answer]:
    got = []
    for request in requests:
        clients = await connect(port, [request])
        clients[0].send()
        got += await answers(clients, within_s=30)
    return got


async def some_at_a_time(port: int, requests: Sequence[bytes], *, num: int) -> list[Answer]:
    """`num` of them open at any time, each on a connection of its own."""
    left, got = list(requests), []

    async def work() -> None:
        while left:
            got.extend(await one_after_another(port, [left.pop()]))

    async with asyncio.TaskGroup() as tasks:
        for number in range(num):
            tasks.create_task(work(), name=f"client {number}")
    return got
