"""What a worker says over a link, one word after another."""

import asyncio
from collections.abc import AsyncGenerator

from protocol.channel.link import WorkerLink
from protocol.messages import ToRouter


async def words_of(link: WorkerLink) -> AsyncGenerator[ToRouter, None]:
    """Ends by raising PeerLost. Close it; what was said after the last word asked for is lost."""
    said: asyncio.Queue[ToRouter] = asyncio.Queue()
    hearing = asyncio.get_running_loop().create_task(link.hear(said.put_nowait), name="hearing")
    hearing.add_done_callback(lambda _: said.put_nowait(_END))  # type: ignore[arg-type]
    try:
        while (word := await said.get()) is not _END:
            yield word
        await hearing
    finally:
        hearing.cancel()


_END = object()
