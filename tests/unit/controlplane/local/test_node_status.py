"""What the workers of a node say together, whoever hangs on either side."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import httpx
import pytest
from support.eventually import soon

from controlplane.local.node_status import MOST_CONNECTIONS, NodeStatus

OnConnection = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Workers:
    """Two metrics' servers; none answers before both are asked."""

    def __init__(self, *, text: bytes = b"ok") -> None:
        self.asked: set[str] = set()
        head = f"HTTP/1.1 200 OK\r\ncontent-length: {len(text)}\r\nconnection: close\r\n\r\n"
        self._answer = head.encode() + text

    @asynccontextmanager
    async def served(self) -> AsyncIterator[dict[str, str]]:
        async with AsyncExitStack() as stack:
            addresses = {}
            for name in ("prefill-0", "decode-0"):
                server = await asyncio.start_server(self._answer_as(name), "127.0.0.1", 0)
                stack.callback(server.close)
                addresses[name] = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            yield addresses

    def _answer_as(self, name: str) -> OnConnection:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            self.asked.add(name)
            await soon(lambda: len(self.asked) == 2)
            writer.write(self._answer)
            writer.close()

        return answer


def test_a_worker_that_is_slow_to_answer_keeps_no_other_waiting() -> None:
    async def test() -> None:
        workers = Workers()
        async with workers.served() as addresses, asyncio.TaskGroup() as tasks:
            status = NodeStatus(addresses)
            async with status.served("127.0.0.1", 0):
                looking = tasks.create_task(status.keep_looking(), name="status")
                await soon(lambda: bool(status.ready))
                assert status.ready == {"prefill-0", "decode-0"}
                looking.cancel()

    asyncio.run(test())


def test_those_who_connect_and_say_nothing_are_bounded_in_number_and_time() -> None:
    async def test() -> None:
        status = NodeStatus({}, within_s=2.0)
        async with status.served("127.0.0.1", 0), AsyncExitStack() as stack:
            for num in range(1, MOST_CONNECTIONS + 1):
                _, writer = await asyncio.open_connection("127.0.0.1", status.port)
                stack.callback(writer.close)
                await soon(lambda num=num: status.num_connections == num)  # type: ignore[misc]
            async with httpx.AsyncClient(trust_env=False) as client:
                with pytest.raises(httpx.TransportError):  # there are too many
                    await client.get(f"http://127.0.0.1:{status.port}/health")
                await soon(lambda: status.num_connections == 0)
                answer = await client.get(f"http://127.0.0.1:{status.port}/health")
                assert answer.text == "ok\n"

    asyncio.run(test())


def test_who_asks_and_does_not_read_is_left() -> None:
    async def test() -> None:
        workers = Workers(text=b"# HELP a " + b"x" * (16 << 20))
        async with workers.served() as addresses, AsyncExitStack() as stack:
            status = NodeStatus(addresses, within_s=3.0)
            await stack.enter_async_context(status.served("127.0.0.1", 0))
            client = stack.enter_context(socket.create_connection(("127.0.0.1", status.port)))
            client.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
            await soon(lambda: len(workers.asked) == 2)
            await soon(lambda: status.num_connections == 0)

    asyncio.run(test())
