"""Strangers of every kind at one router: `python -m support.hostile URL ROUNDS SEED`.

Sixty rounds are a bad hour: each begins a second after the last, or when that is over. Prints how
many answers had which status, 0 for a connection that was closed without one.
"""

import asyncio
import json
import os
import random
import socket
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress

from support.raw_http import CHAT, HEALTH, Raw, connected, post

ODD_REQUESTS = 170
HI = [{"role": "user", "content": "hi"}]
FIELDS = (
    "messages", "model", "n", "stop", "seed", "stream", "logit_bias", "max_tokens", "temperature",
    "top_p", "tools", "user", "metadata", "stream_options", "response_format", "prompt", "x",
)  # fmt: skip
VALUES: tuple[object, ...] = (
    None, True, -1, 0, 1e-38, 1e308, 2**70, "", "a", "\ud800", [], {}, [1], [None], [[]], {"a": 1},
    ["a"] * 1000, [1] * 1000, {"a": {"a": {}}}, HI, [{"role": "user"}],
    [{"role": 1, "content": []}],
)  # fmt: skip
OFFER = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk")


def chat(**fields: object) -> bytes:
    return json.dumps({"model": "fake", "messages": HI, "max_tokens": 3, **fields}).encode()


class Crowd:
    def __init__(self, url: str, *, seed: int) -> None:
        self.url = url
        self.statuses: Counter[int] = Counter()
        self._random = random.Random(seed)

    async def attack(self) -> None:
        attacks: list[Callable[[], Awaitable[None]]] = [
            self.words, self.ones, self.headers, self.odd_requests, self.readers, self.leavers,
            self.pipeline, self.chunks, self.logprobs,
        ]  # fmt: skip
        async with asyncio.timeout(120), asyncio.TaskGroup() as tasks:
            for attack in attacks:
                tasks.create_task(attack(), name=attack.__name__)  # type: ignore[arg-type]

    async def words(self) -> None:
        """One word of 8 MB, as a message and as a prompt."""
        word = "a" * ((8 << 20) - 200)
        await self.ask(post(body=chat(messages=[{"role": "user", "content": word}])))
        body = json.dumps({"model": "fake", "prompt": word}).encode()
        await self.ask(post(body=body).replace(b"/chat", b"", 1))

    async def ones(self) -> None:
        body = b'{"model":"fake","messages":[' + b"1," * (2 << 20)
        await self.ask(post(body=body[:-1] + b"]}"))

    async def headers(self) -> None:
        """100 MB of them, or as many as are taken."""
        async with connected(self.url) as client, asyncio.TaskGroup() as tasks:
            tasks.create_task(_send_headers(client), name="send headers")
            self.statuses[(await client.answer()).status] += 1

    async def odd_requests(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(10):
                tasks.create_task(self._odd_ones(ODD_REQUESTS // 10), name="odd requests")

    async def readers(self) -> None:
        """Ask for streams and pages, and read nothing until the end of the round."""
        host, port = self.url.removeprefix("http://").split(":")
        silent = []
        for _ in range(5):
            client = socket.create_connection((host, int(port)))
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.sendall(post(body=chat(stream=True, max_tokens=200)))
            client.sendall(HEALTH.replace(b"/health", b"/metrics") * 50)
            silent.append(client)
        await asyncio.sleep(0.3)
        for client in silent:
            client.close()

    async def pipeline(self) -> None:
        """As many requests as are taken in two seconds, read or not."""
        with suppress(OSError, TimeoutError):
            async with connected(self.url) as client:
                with suppress(TimeoutError):
                    async with asyncio.timeout(2):
                        while True:
                            client.send(HEALTH * 500)
                            await client.writer.drain()
                client.writer.transport.abort()

    async def chunks(self) -> None:
        """Bodies that are all empty lines, and bodies in the smallest chunks that are taken."""
        head = CHAT + b"Transfer-Encoding: chunked\r\n\r\n"
        empty_lines = b"10000\r\n" + b"\r\n" * 32768 + b"\r\n"
        for chunks in (empty_lines * 30, b"6\r\n      \r\n" * 100_000):
            await self.ask(head + chunks + b"2\r\n{}\r\n0\r\n\r\n")

    async def logprobs(self) -> None:
        """As many choices as there may be, with all that is known of their tokens."""
        await self.ask(post(body=chat(n=128, logprobs=True, top_logprobs=20)))

    async def leavers(self) -> None:
        """Half a body, a closed side, an offer to upgrade, and gone in the middle of each."""
        whole = post(*OFFER, body=chat(stream=True))
        await self.ask(whole)
        await self.ask(post(body=chat()), half_close=True)
        for cut in (5, len(CHAT), len(whole) - 3, len(whole)):
            async with connected(self.url) as client:
                client.send(whole[:cut])
                await client.writer.drain()
                client.writer.transport.abort()

    async def ask(self, sent: bytes, *, half_close: bool = False) -> None:
        try:
            async with connected(self.url) as client:
                client.send(sent)
                if half_close:
                    client.half_close()
                answer = await client.answer(to="HEAD" if sent.startswith(b"HEAD") else "POST")
                self.statuses[answer.status] += 1
        except (OSError, asyncio.IncompleteReadError):
            self.statuses[0] += 1  # closed without an answer

    async def _odd_ones(self, number: int) -> None:
        for _ in range(number):
            await self.ask(self._odd())

    def _odd(self) -> bytes:
        choose = self._random
        match choose.randrange(5):
            case 0:
                fields = {name: choose.choice(VALUES) for name in choose.sample(FIELDS, 2)}
                return post(body=chat(**fields))
            case 1:
                return post(body=choose.randbytes(choose.randrange(1, 3000)))
            case 2:
                path = "".join(chr(choose.randrange(33, 127)) for _ in range(choose.randrange(40)))
                method = choose.choice(("GET", "HEAD", "PUT", "OPTIONS", "TRACE"))
                return f"{method} /{path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
            case 3:  # one byte of a good one changed; the end of its head is kept
                sent = bytearray(post(body=chat()))
                sent[choose.randrange(len(CHAT) - 2)] = choose.randrange(256)
                return bytes(sent) + b"\r\n\r\n"
            case _:
                return post(body=chat(**{choose.choice(FIELDS): "x" * choose.randrange(20_000)}))


async def _send_headers(client: Raw) -> None:
    with suppress(OSError):
        client.send(CHAT)
        for _ in range(100):
            client.send(b"X-Header: y\r\n" * (1_000_000 // 13))
            await client.writer.drain()
            await asyncio.sleep(0.005)  # asyncio forgets what came before a reset


async def main(url: str, rounds: int, seed: int) -> int:
    crowd = Crowd(url, seed=seed)
    for _ in range(rounds):
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(crowd.attack(), name="attack")
            tasks.create_task(asyncio.sleep(1), name="pace")
    print(json.dumps(crowd.statuses))
    return 0


if __name__ == "__main__":
    os.nice(10)  # it is the router that is looked at
    sys.exit(asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
