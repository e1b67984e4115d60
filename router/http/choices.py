"""Runs the choices of one HTTP request side by side and merges their events.

One choice, the usual case, is passed through untouched.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager

from router.requests.events import Ended, GenerationEvent, GenerationRequest
from router.runtime import GenerationService

EVENTS_PER_CHOICE = 16
"""Queued for the client before its choices have to wait."""
ChoiceEvent = tuple[int, GenerationEvent]


@asynccontextmanager
async def open_choices(
    dispatcher: GenerationService,
    requests: Sequence[GenerationRequest],
    *,
    num_at_once: int | None = None,
    tasks: asyncio.TaskGroup,
) -> AsyncIterator[AsyncGenerator[ChoiceEvent, None]]:
    """Events of all choices, each with its choice's index, until every one has `Ended`.

    The first failure of any is raised. On leaving, whatever still runs is aborted.
    """
    if len(requests) == 1:
        async with aclosing(_single(dispatcher, requests[0])) as events:
            yield events
        return
    num_at_once = num_at_once or len(requests)
    queue: asyncio.Queue[ChoiceEvent | Exception] = asyncio.Queue(EVENTS_PER_CHOICE * num_at_once)
    seats = asyncio.Semaphore(num_at_once)
    runs = [
        tasks.create_task(_pump(dispatcher, request, index, queue, seats), name=f"choice {index}")
        for index, request in enumerate(requests)
    ]
    try:
        async with aclosing(_merged(queue, num_choices=len(requests))) as events:
            yield events
    finally:
        for run in runs:
            run.cancel()


async def _single(
    dispatcher: GenerationService, request: GenerationRequest
) -> AsyncGenerator[ChoiceEvent, None]:
    ended = False
    async with aclosing(dispatcher.generate(request)) as events:
        async for event in events:
            ended = isinstance(event, Ended)
            yield 0, event
    assert ended, f"{request.id} has no ending"


async def _pump(
    dispatcher: GenerationService,
    request: GenerationRequest,
    index: int,
    queue: asyncio.Queue[ChoiceEvent | Exception],
    seats: asyncio.Semaphore,
) -> None:
    try:
        async with seats, aclosing(_single(dispatcher, request)) as events:
            async for _, event in events:
                await queue.put((index, event))
    except Exception as error:  # not handled here: raised again by whoever reads the queue
        await queue.put(error)


async def _merged(
    queue: asyncio.Queue[ChoiceEvent | Exception], *, num_choices: int
) -> AsyncGenerator[ChoiceEvent, None]:
    num_ended = 0
    while num_ended < num_choices:
        item = await queue.get()
        if isinstance(item, Exception):
            raise item
        num_ended += isinstance(item[1], Ended)
        yield item
