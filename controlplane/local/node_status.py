"""What several workers say of themselves, at one port: `/ready`, `/health` and `/metrics`.

Ready when all of them are; alive as long as their supervisor is, which starts again what hangs.
Metrics are those of each worker, with its name as a label.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import httpx

from protocol.process.listening import bound_socket

LOOK_S = 0.25
ANSWER_S = 2.0
"""For a worker; whoever asks us has twice that, from the first byte to the last."""
MOST_CONNECTIONS = 64
_SAMPLE = re.compile(r"([A-Za-z_:][\w:]*)(\{(.*)\})?( .*)")


class NodeStatus:
    """Of workers by name, each with the address of its metrics' server."""

    def __init__(self, addresses: Mapping[str, str], *, within_s: float = 2 * ANSWER_S) -> None:
        self._addresses = addresses
        self._within_s = within_s
        self.num_connections = 0
        """Of those who ask, at the moment."""
        self._why: dict[str, str | None] = dict.fromkeys(addresses, "starting")
        self._client = httpx.AsyncClient(timeout=ANSWER_S, trust_env=False)
        self.port = 0
        """Where it is served, once it is."""

    @property
    def num_workers(self) -> int:
        return len(self._addresses)

    @property
    def ready(self) -> set[str]:
        return {name for name, why in self._why.items() if why is None}

    def not_ready(self) -> str | None:
        """Which workers are not, and why."""
        waiting = [f"{name}: {why}" for name, why in self._why.items() if why is not None]
        return "; ".join(waiting) or None

    async def keep_looking(self) -> None:
        while True:
            for name, (status, text) in (await self._ask_all("/ready")).items():
                self._why[name] = None if status == 200 else text.strip() or "starting"
            await asyncio.sleep(LOOK_S)

    @asynccontextmanager
    async def served(self, host: str, port: int) -> AsyncIterator[None]:
        """Raises SettingsError for a port that cannot be had."""
        sock = bound_socket(host, port, setting="metrics_port")
        server = await asyncio.start_server(self._answer, sock=sock)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield
        finally:
            server.close()
            await self._client.aclose()

    async def _ask_all(self, path: str) -> dict[str, tuple[int, str]]:
        async with asyncio.TaskGroup() as tasks:
            asked = {
                name: tasks.create_task(self._ask(name, path), name=f"ask {name}")
                for name in self._addresses
            }
        return {name: task.result() for name, task in asked.items()}

    async def _ask(self, name: str, path: str) -> tuple[int, str]:
        """Status 0: it does not answer."""
        try:
            async with asyncio.timeout(ANSWER_S):
                answer = await self._client.get(f"{self._addresses[name]}{path}")
        except (httpx.HTTPError, TimeoutError):
            return 0, ""
        return answer.status_code, answer.text

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.num_connections >= MOST_CONNECTIONS:
            writer.transport.abort()
            return
        self.num_connections += 1
        try:
            async with asyncio.timeout(self._within_s):
                await self._answer_one(reader, writer)
                writer.close()
                await writer.wait_closed()
        except (OSError, ValueError, TimeoutError):
            pass  # whoever asked is gone, does not read, or said nothing that is HTTP
        finally:
            self.num_connections -= 1
            writer.transport.abort()

    async def _answer_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        words = (await reader.readline()).split()
        while (await reader.readline()).strip():
            pass
        path = urlsplit(words[1].decode(errors="replace")).path if len(words) > 1 else ""
        status, text = await self._say(path)
        body = f"{text}\n".encode()
        kind = "text/plain; version=0.0.4; charset=utf-8"
        head = f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n"
        writer.write(f"{head}connection: close\r\n\r\n".encode() + body)

    async def _say(self, path: str) -> tuple[str, str]:
        match path:
            case "/health":
                return "200 OK", "ok"
            case "/ready":
                why = self.not_ready()
                return ("200 OK", "ok") if why is None else ("503 Service Unavailable", why)
            case "/metrics":
                texts = {name: text for name, (_, text) in (await self._ask_all(path)).items()}
                return "200 OK", merged(texts)
            case _:
                return "404 Not Found", "/ready, /health and /metrics are here"


def merged(texts: Mapping[str, str]) -> str:
    """Prometheus' text of each worker as one: every family once, each sample with its worker."""
    families: dict[str, tuple[list[str], list[str]]] = {}
    for worker, text in texts.items():
        head: list[str] = []
        samples: list[str] = []
        for line in text.splitlines():
            if line.startswith("# HELP "):
                head, samples = families.setdefault(line.split(" ", 3)[2], ([], []))
                head[:] = [line]
            elif line.startswith("# TYPE "):
                head[1:] = [line]
            elif (parts := _SAMPLE.fullmatch(line)) is not None:
                samples.append(_with_worker(parts, worker))
    return "\n".join(line for both in families.values() for line in _flat(both))


def _flat(both: tuple[list[str], list[str]]) -> Iterable[str]:
    yield from both[0]
    yield from both[1]


def _with_worker(parts: "re.Match[str]", worker: str) -> str:
    labels = ",".join(one for one in (parts[3], f'worker="{worker}"') if one)
    return f"{parts[1]}{{{labels}}}{parts[4]}"
