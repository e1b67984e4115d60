"""A client that does nothing but note when each token came: little of it disturbs the measured.

Called by `bench.interference`. HTTP/1.1 on one connection per request, over asyncio streams.
"""

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit


@dataclass(slots=True)
class Stream:
    """One streamed answer. Times are `time.monotonic()` seconds."""

    sent_at: float
    token_times: list[float] = field(default_factory=list)
    route: str = ""

    @property
    def first_token_s(self) -> float:
        return self.token_times[0] - self.sent_at

    def gaps_s(self, *, after: float, before: float) -> list[float]:
        """Inter-token latencies that ended within the window."""
        pairs = zip(self.token_times, self.token_times[1:], strict=False)
        return [late - early for early, late in pairs if after <= late <= before]


async def stream(url: str, body: dict[str, Any], into: list[Stream]) -> Stream:
    """Streams a completion to its end; `into` has it from the start. Raises RuntimeError when
    the router does not answer 200 or ends without `[DONE]`."""
    where = urlsplit(url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    payload = json.dumps({**body, "stream": True}).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nhost: {where.netloc}\r\nconnection: close\r\n"
        f"content-type: application/json\r\ncontent-length: {len(payload)}\r\n\r\n"
    )
    answer = Stream(sent_at=time.monotonic())
    into.append(answer)
    try:
        writer.write(head.encode() + payload)
        status = await reader.readline()
        if b" 200 " not in status:
            raise RuntimeError(f"{status!r} {(await reader.read())[-500:]!r}")
        await _read_events(reader, answer)
    finally:
        writer.close()
    return answer


async def _read_events(reader: asyncio.StreamReader, answer: Stream) -> None:
    async for line in reader:
        if line.startswith(b"data: [DONE]"):
            return
        if line.lower().startswith(b"x-baton-route:"):
            answer.route = line.partition(b":")[2].strip().decode()
        elif line.startswith(b"data: ") and b'"finish_reason":null' in line.replace(b" ", b""):
            answer.token_times.append(time.monotonic())
    raise RuntimeError("the stream ended without [DONE]")
