"""What all processes of this router have together, for whoever asks one of them."""

import asyncio
import os
from collections.abc import Callable
from dataclasses import replace
from typing import assert_never

import msgspec
from prometheus_client import generate_latest

from protocol.ids import RequestId
from router.processes.exposition import merged
from router.processes.questions import AskMetrics, AskProcess, AskTraces, ProcessView, Question
from router.requests.trace import RequestTrace
from router.runtime import ClusterView, Runtime


class WholeRouter:
    """Asks the others at every call; of a router of one process, nobody. `num_held` says how many
    choices this process generates."""

    def __init__(self, runtime: Runtime, *, num_held: Callable[[], int]) -> None:
        self._runtime = runtime
        self._num_held = num_held
        self._siblings = runtime.siblings

    async def metrics(self) -> bytes:
        """An exposition. Of several processes each series has the number of its process."""
        own = generate_latest(self._runtime.metrics.registry)
        if self._siblings is None:
            return own
        of_all = {**await self._siblings.ask(AskMetrics()), self._siblings.process: own}
        shared = self._runtime.metrics.shared_names
        return await asyncio.to_thread(merged, of_all, own=self._siblings.process, shared=shared)

    async def traces(self, request: RequestId) -> tuple[RequestTrace, ...]:
        """Of whichever process had it; empty when none remembers it."""
        found = self._runtime.cluster.traces(request)
        if found or self._siblings is None:
            return found
        answers = await self._siblings.ask(AskTraces(request=request))
        told = (msgspec.json.decode(a, type=tuple[RequestTrace, ...]) for a in answers.values())
        return next((traces for traces in told if traces), ())

    async def view(self) -> ClusterView:
        """As this process sees it, with all processes."""
        view = self._runtime.cluster.view()
        return view if self._siblings is None else replace(view, processes=await self._processes())

    async def num_in_flight(self) -> int:
        """Choices being generated."""
        return sum(process.num_in_flight for process in await self._processes())

    async def answer(self, question: Question) -> bytes:
        """What another process asks of this one."""
        match question:
            case AskMetrics():
                return generate_latest(self._runtime.metrics.registry)
            case AskTraces(request=request):
                return msgspec.json.encode(self._runtime.cluster.traces(request))
            case AskProcess():
                return msgspec.json.encode(self._own())
            case _:
                assert_never(question)

    async def _processes(self) -> tuple[ProcessView, ...]:
        answers = {} if self._siblings is None else await self._siblings.ask(AskProcess())
        others = [msgspec.json.decode(answer, type=ProcessView) for answer in answers.values()]
        return tuple(sorted([self._own(), *others], key=lambda one: one.process))

    def _own(self) -> ProcessView:
        return ProcessView(
            process=0 if self._siblings is None else self._siblings.process,
            router=self._runtime.cluster.view().router,
            pid=os.getpid(),
            num_in_flight=self._num_held(),
        )
