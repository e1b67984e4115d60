"""Finds children that live and answer nothing, and has them started again.

A child is watched from its first answer on: how long a start takes is its own affair. Kills, and
leaves the starting to `Child.run`.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from controlplane.local.child import Child

PROBE_S = 1.0
PROBE_TIMEOUT_S = 5.0
Answers = Callable[[], Awaitable[bool]]
"""Whether a child answers now, as one does that works. OSError and TimeoutError are no."""


async def watch(child: Child, answers: Answers, *, hung_s: float, every_s: float = PROBE_S) -> None:
    """Until the child has ended for good: kill it whenever it has not answered for `hung_s`."""
    loop = asyncio.get_running_loop()
    watched, answered_at = child.pid, None
    while not child.ended.is_set():
        answering = await _answers_in_time(answers)
        now = loop.time()
        if child.pid != watched or child.is_stopping:  # another incarnation, or none to save
            watched, answered_at = child.pid, None
        elif answering:
            answered_at = now
        elif answered_at is not None and now - answered_at >= hung_s:
            child.kill_hung(silent_s=now - answered_at)
            answered_at = None
        with suppress(TimeoutError):
            async with asyncio.timeout(every_s):
                await child.ended.wait()


async def http_answers(host: str, port: int, *, with_any: bool = False) -> bool:
    """Whether `GET /health` is answered with 200, or `with_any` status. Raises OSError when nobody
    listens."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(f"GET /health HTTP/1.0\r\nHost: localhost:{port}\r\n\r\n".encode())
        answer = await reader.readline()
        return answer.startswith(b"HTTP/") and (with_any or b" 200 " in answer)
    finally:
        writer.close()


async def _answers_in_time(answers: Answers) -> bool:
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            return await answers()
    except (OSError, TimeoutError):
        return False
