"""TLS to a Redis with a certificate of an authority of our own, a real redis-server behind it."""

import asyncio
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from support.redis_server import redis_server

from protocol.errors import StoreError
from protocol.store.address import RedisAddress
from protocol.store.connection import RedisConnection

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate")


def certificate(folder: Path) -> tuple[Path, Path]:
    """Of 127.0.0.1, signed by itself; and its key."""
    made, key = folder / "ca.crt", folder / "ca.key"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"),
            *("-subj", "/CN=redis", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(key), "-out", str(made)),
        ],
        check=True,
        capture_output=True,
    )
    return made, key


@asynccontextmanager
async def behind_tls(port: int, made: Path, key: Path) -> AsyncIterator[int]:
    """A port of 127.0.0.1 that speaks TLS, and passes on to the other."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made, key)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
        ways = (_copy(reader, far_writer), _copy(far_reader, writer))
        await asyncio.gather(*ways)

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()


async def ping(address: RedisAddress) -> None:
    connection = RedisConnection(address, deadline_s=20)
    try:
        await connection.ping()
    finally:
        await connection.close()


def test_it_is_trusted_by_the_authority_that_is_named_and_by_no_other(tmp_path: Path) -> None:
    made, key = certificate(tmp_path)

    async def test() -> None:
        async with behind_tls(server.port, made, key) as port:
            url = f"rediss://127.0.0.1:{port}/0"
            await ping(RedisAddress(url=url, ca=str(made)))
            with pytest.raises(StoreError, match=r"(?i)certificate"):
                await ping(RedisAddress(url=url))

    with redis_server() as server:
        asyncio.run(test())
