"""Workers with OpenAI's API and no model, for routers that speak HTTP to theirs.

    python -m bench.router_sim.mock_workers --model DIR --num 2 --pace-ms 20

As `bench.router_sim.engines`: token i of a request is token `seed + i` of a corpus, the first comes
at once, then one with each step; each chunk is a write of its own. Prints `ready` and the ports.
"""

import argparse
import asyncio
import json
import time
from functools import partial
from pathlib import Path
from typing import cast

import uvloop

from bench.router_sim.answers import Answers
from protocol.text.tokenizer import Tokenizer

_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)


class Stream:
    def __init__(self, transport: asyncio.Transport, body: bytes) -> None:
        fields = json.loads(body)
        self.transport = transport
        self.index = 0
        self.seed: int = fields.get("seed") or 0
        asked = fields.get("max_completion_tokens") or fields.get("max_tokens")
        self.num_tokens: int = asked or 16
        frame = {
            "id": f"chatcmpl-{id(self):032x}", "object": "chat.completion.chunk",
            "created": int(time.time()), "model": fields.get("model") or "mock",
        }  # fmt: skip
        self._before = json.dumps(frame)[:-1].encode() + (
            b', "choices": [{"index": 0, "delta": {"content":'
        )

    def write(self, text: bytes) -> None:
        """One token, and the end after the last."""
        self.index += 1
        data = b'data: %b%b}, "logprobs": null, "finish_reason": null}]}\n\n' % (self._before, text)
        if self.index >= self.num_tokens:
            data += b"data: [DONE]\n\n"
        self.transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        if self.index >= self.num_tokens:
            self.transport.write(b"0\r\n\r\n")


class Worker:
    """The streams of one port."""

    def __init__(self, texts: list[bytes], *, pace_s: float) -> None:
        self._texts = texts
        self._pace_s = pace_s
        self._streams: set[Stream] = set()

    def begin(self, stream: Stream) -> None:
        stream.transport.write(_HEAD)
        self._streams.add(stream)
        self._write(stream)

    def forget(self, transport: asyncio.Transport) -> None:
        self._streams = {one for one in self._streams if one.transport is not transport}

    async def run(self, *, first_step_s: float) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + first_step_s
        while True:
            await asyncio.sleep(due - loop.time())
            due = max(due + self._pace_s, loop.time())
            for stream in tuple(self._streams):
                self._write(stream)

    def _write(self, stream: Stream) -> None:
        stream.write(self._texts[(stream.seed + stream.index) % len(self._texts)])
        if stream.index >= stream.num_tokens:
            self._streams.discard(stream)


class Connection(asyncio.Protocol):
    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._unread = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own is of no such class

    def connection_lost(self, exc: Exception | None) -> None:
        self._worker.forget(self._transport)

    def data_received(self, data: bytes) -> None:
        self._unread += data
        head, end, rest = self._unread.partition(b"\r\n\r\n")
        if not end:
            return
        length = _length(head)
        if len(rest) < length:
            return
        self._unread = rest[length:]
        if head.startswith(b"POST /v1/chat/completions"):
            self._worker.begin(Stream(self._transport, rest[:length]))
        else:
            self._answer(head)

    def _answer(self, head: bytes) -> None:
        """What routers ask of a worker besides."""
        model = {"id": "mock", "object": "model", "max_model_len": 32_768}
        shown = {"object": "list", "data": [model], "model_path": "mock", "status": "ok"}
        body = b"" if head.startswith(b"GET /health") else json.dumps(shown).encode()
        answer = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        self._transport.write(answer % len(body) + body)


def _length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line[15:])
    return 0


async def serve(model: Path, *, num_workers: int, pace_s: float) -> None:
    tokenizer = Tokenizer.load(model)
    tokens = Answers(tokenizer).token_ids
    texts = [json.dumps(tokenizer.token_text(token)).encode() for token in tokens]
    loop, ports = asyncio.get_running_loop(), []
    async with asyncio.TaskGroup() as tasks:
        for number in range(num_workers):
            worker = Worker(texts, pace_s=pace_s)
            server = await loop.create_server(partial(Connection, worker), "127.0.0.1", 0)
            ports.append(server.sockets[0].getsockname()[1])
            first_step_s = pace_s * number / num_workers
            tasks.create_task(worker.run(first_step_s=first_step_s), name=f"worker {number}")
        print("ready", *ports, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--num", type=int, default=1)
    parser.add_argument("--pace-ms", type=float, default=20.0)
    options = parser.parse_args()
    uvloop.run(serve(options.model, num_workers=options.num, pace_s=options.pace_ms / 1e3))


if __name__ == "__main__":
    main()
