"""A container's probes, as a kubelet makes them: periods, patience, and what follows of them."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from support.pods.container import Container
from support.pods.volumes import Object

from protocol.process.listening import bracketed

Look = Callable[[], Awaitable[bool]]


def look_of(probe: Object, container: Object, address: str, running: Container) -> Look:
    """One try of it, within its `timeoutSeconds`."""
    within_s = float(probe.get("timeoutSeconds", 1))

    async def look() -> bool:
        match probe:
            case {"httpGet": asked}:
                port = _port(container, asked["port"])
                return await _http(address, port, asked.get("path", "/"), within_s)
            case {"tcpSocket": {"port": port}}:
                return await _http(address, _port(container, port), None, within_s)
            case {"exec": {"command": command}}:
                return await running.run(command, within_s)
            case _:
                raise AssertionError(f"probe {probe}: not played here")

    return look


async def watch(probe: Object, look: Look, tell: Callable[[bool], None]) -> None:
    """Tells what the probe's thresholds make of what it sees, until cancelled."""
    await asyncio.sleep(float(probe.get("initialDelaySeconds", 0)))
    num_good = num_bad = 0
    while True:
        if await look():
            num_good, num_bad = num_good + 1, 0
            if num_good >= probe.get("successThreshold", 1):
                tell(True)
        else:
            num_good, num_bad = 0, num_bad + 1
            if num_bad >= probe.get("failureThreshold", 3):
                tell(False)
        await asyncio.sleep(float(probe.get("periodSeconds", 10)))


async def _http(address: str, port: int, path: str | None, within_s: float) -> bool:
    writer: Any = None
    try:
        async with asyncio.timeout(within_s):
            reader, writer = await asyncio.open_connection(address, port)
            if path is None:
                return True
            writer.write(
                f"GET {path} HTTP/1.1\r\nHost: {bracketed(address)}\r\n"
                "User-Agent: kube-probe/1.33\r\nConnection: close\r\n\r\n".encode()
            )
            status = (await reader.readline()).split()
            return len(status) > 1 and 200 <= int(status[1]) < 400
    except (OSError, TimeoutError):
        return False
    finally:
        if writer is not None:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


def _port(container: Object, port: int | str) -> int:
    if isinstance(port, int):
        return port
    (found,) = (one for one in container.get("ports", ()) if one.get("name") == port)
    number: int = found["containerPort"]
    return number
