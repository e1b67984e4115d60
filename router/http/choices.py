"""Runs the choices of one HTTP request side by side: each is a request of its own."""

import asyncio
from dataclasses import replace

from router.admission.shed import QueueShed
from router.api.generation import Generation
from router.http.answer import AnswerWriter
from router.runtime import GenerationService


async def answer_choices(
    dispatcher: GenerationService, generation: Generation, answer: AnswerWriter
) -> None:
    """Until all have ended. Raises the first failure of any; then, or when it is cancelled, what
    still runs is aborted."""
    await answer.prepare()
    if len(generation.requests) == 1:
        await _answer_choice(dispatcher, generation, answer, 0)
        return
    seats = asyncio.Semaphore(generation.num_at_once)

    async def run(index: int) -> None:
        async with seats:
            await _answer_choice(dispatcher, generation, answer, index)

    try:
        async with asyncio.TaskGroup() as tasks:
            for index in range(len(generation.requests)):
                tasks.create_task(run(index), name=f"choice {index}")
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None


async def _answer_choice(
    dispatcher: GenerationService, generation: Generation, answer: AnswerWriter, index: int
) -> None:
    """Once another choice is being answered it is too late to send this one away: it waits anew."""
    request, now = generation.requests[index], asyncio.get_running_loop().time
    ends_at = now() + request.deadline_s
    while True:
        try:
            ended = await dispatcher.generate(request, answer.choice(index))
            return await answer.ended(index, ended)
        except QueueShed as error:
            left_s = ends_at - now() - error.retry_after_s
            if not answer.is_begun or left_s <= 0:
                raise
            await asyncio.sleep(error.retry_after_s)
            request = replace(request, deadline_s=left_s)
