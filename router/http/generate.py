"""The endpoint that generates: admitted, read, prepared, dispatched, answered, in that order.

Every request gets one ending: an answer, an error, or, when the client hung up, an abort of
whatever it still had running.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from protocol.errors import BatonError
from protocol.ids import RequestId
from router.anthropic.errors import anthropic_error
from router.api.errors import ApiError, ClientGone, ShowError, as_api_error, openai_error
from router.api.generation import Generation
from router.api.model_choice import Choose, ModelChoice
from router.api.session import session_of
from router.api.threads import LARGE_BYTES, Args, T, Threads
from router.http.admission import Share, Stock
from router.http.answer import AnswerWriter
from router.http.choices import answer_choices
from router.http.exchange import Exchange
from router.http.kept_bodies import KeptBodies
from router.http.middleware import client_of, request_id, tell_headers
from router.http.rate_headers import rate_headers
from router.http.terms import Bill, deadline_of, under_terms
from router.http.trimming import ALTERNATIVE_BYTES, Trimming
from router.requests.events import NoWorkers, SlowClient
from router.responses.recent import RecentAnswers
from router.runtime import Runtime
from router.tenants.client import Client

MAX_ANEW = 3
"""Times that one request begins anew because its revision has left: more roll-outs than that do not
overtake each other."""
log = logging.getLogger("baton.api")

FindBody = Callable[[], bytes | None]
"""The body to begin anew with; None: it may not, or that has made room for others."""
Prepare = Callable[[Runtime, bytes, RequestId, Choose], Generation]
"""A body to generations; `router.openai.prepare.prepare_chat`, for one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surface:
    """What tells the endpoints that generate apart."""

    prepare: Prepare
    whole: type[AnswerWriter]
    """What answers a request that does not stream; the next, one that does."""
    stream: type[AnswerWriter]
    show_error: ShowError = openai_error


@dataclass(frozen=True, slots=True, kw_only=True)
class AppState:
    """What all requests of one app share."""

    runtime: Runtime
    seats: Stock
    """Of choices in flight."""
    bodies: Stock
    """Of bytes of bodies that are not yet prepared."""
    large_bodies: asyncio.Semaphore
    """Leaves a thread to small requests, and the interpreter lock to the event loop in between."""
    trimming: Trimming
    kept_bodies: KeptBodies
    recent: RecentAnswers
    threads: Threads
    """That parse, render and tokenise."""

    @asynccontextmanager
    async def body_of(self, exchange: Exchange, seats: Share) -> AsyncIterator[bytes]:
        """A whole body, while it takes room; a seat is taken when it is here, not before, so that
        who sends slowly keeps nobody out."""
        with self.bodies.share(client_of(exchange.scope).name) as room:
            body = await exchange.read_body(room)
            seats.widen(1)
            try:
                yield body
            finally:
                self.trimming.count(len(body))

    async def run_in_thread(
        self, work: Callable[[*Args], T], *args: *Args, num_bytes: int = 0
    ) -> T:
        """`work(*args)`, which parses, renders or tokenises so many bytes: a 32k-token prompt is
        about 70 ms of one core, which would delay every stream of the event loop. `tokenizers`
        leaves the interpreter lock while it encodes. Bounded by `seats`: nobody comes here without
        one."""
        async with self.large_bodies if num_bytes >= LARGE_BYTES else nullcontext():
            return await self.threads.run(work, *args, num_bytes=num_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One HTTP request on its way to an answer."""

    exchange: Exchange
    client: Client
    request: RequestId
    session: str
    deadline_s: float
    """That it may take from now on."""
    choice: ModelChoice


class GenerateResponse(Response):
    """A response that is made while it is sent."""

    def __init__(self, state: AppState, surface: Surface) -> None:
        super().__init__()
        self._state = state
        self._surface = surface

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        limits, show_error = self._state.runtime.limits, self._surface.show_error
        exchange = Exchange(scope, receive, send, limits=limits, show_error=show_error)
        try:
            await self._serve(exchange)
        except ClientGone:
            log.info("client gone")

    async def _serve(self, exchange: Exchange) -> None:
        runtime, client = self._state.runtime, client_of(exchange.scope)
        most = None if client.key is None else client.key.max_in_flight
        bill = Bill(runtime.rate_limits, client)
        try:
            with self._state.seats.share(client.name, most=most) as seats:
                await self._charge(exchange, bill.charge_request())
                asked = self._asked(exchange, client)
                async with self._state.body_of(exchange, seats) as body:
                    generation = await self._prepared(asked, body)
                    kept = self._state.kept_bodies.keep(body)
                del body  # else it would live as long as the answer takes
                try:
                    seats.widen(generation.num_at_once)
                    await self._charge(exchange, bill.charge_tokens(generation))
                    await self._answer_by_any(generation, asked, bill, kept)
                finally:
                    self._state.kept_bodies.drop(kept)
        except ApiError as error:
            await exchange.refuse(error)
        except BatonError as error:
            await exchange.refuse(as_api_error(error))

    def _asked(self, exchange: Exchange, client: Client) -> Asked:
        """Raises ApiError 400 for what is wrong in its head."""
        runtime, headers = self._state.runtime, dict(exchange.scope["headers"])
        deadline_s = deadline_of(headers, most_s=runtime.limits.request_timeout_s)
        session = session_of(headers, client=client.name)
        request = request_id(exchange.scope)
        return Asked(
            exchange=exchange,
            client=client,
            request=request,
            session=session,
            deadline_s=deadline_s,
            choice=ModelChoice(runtime.models, session or request),
        )

    async def _charge(self, exchange: Exchange, charging: Awaitable[None]) -> None:
        """The answer tells what is left, also where it was not enough."""
        limits, key = self._state.runtime.rate_limits, client_of(exchange.scope).key
        try:
            await charging
        finally:
            if limits is not None and key is not None:
                is_anthropic = self._surface.show_error is anthropic_error
                told = rate_headers(
                    limits.standings(key), is_anthropic=is_anthropic, now=time.time()
                )
                tell_headers(exchange.scope, told)

    async def _prepared(self, asked: Asked, body: bytes) -> Generation:
        """By the model that it names, under the terms of its client; the answer will tell which."""
        choice, waited_s = asked.choice, asked.choice.waited_s
        try:
            generation = await choice.made(
                partial(self._made, asked, body),
                within_s=asked.deadline_s,
                watched=asked.exchange.unless_gone,
            )
        finally:
            tell_headers(asked.exchange.scope, choice.headers)
        left_s = max(0.0, asked.deadline_s - (choice.waited_s - waited_s))
        return under_terms(generation, asked.client, deadline_s=left_s, session=asked.session)

    async def _made(self, asked: Asked, body: bytes) -> Generation:
        state, choose = self._state, asked.choice.choose
        prepare, request = self._surface.prepare, asked.request
        return await state.run_in_thread(
            prepare, state.runtime, body, request, choose, num_bytes=len(body)
        )

    async def _answer_by_any(
        self, generation: Generation, asked: Asked, bill: Bill, kept: int
    ) -> None:
        """By the revision that was chosen; if that has left before the client had anything, by the
        one that the name stands for now. All in the time that it had when it was prepared."""
        now = asyncio.get_running_loop().time
        ends_at = now() + asked.deadline_s - asked.choice.waited_s
        answer = self._writer(generation, asked)
        try:
            for num_left in reversed(range(MAX_ANEW + 1)):
                found = partial(self._state.kept_bodies.find, kept) if num_left else _none
                body = await self._answer(generation, answer, asked, found)
                if body is None:
                    return
                generation = await self._prepared(replace(asked, deadline_s=ends_at - now()), body)
                answer = self._writer(generation, asked)
                del body  # as the first time
        finally:
            bill.settle(answer.num_tokens_used)

    def _writer(self, generation: Generation, asked: Asked) -> AnswerWriter:
        make = self._surface.stream if generation.stream else self._surface.whole
        return make(generation, asked.exchange)

    async def _answer(
        self, generation: Generation, answer: AnswerWriter, asked: Asked, kept: FindBody
    ) -> bytes | None:
        """Until the answer is sent. A body: that which was kept is to be prepared anew, and the
        client has nothing yet. Raises ClientGone."""
        try:
            return await asked.exchange.unless_gone(self._follow(generation, answer, asked, kept))
        finally:
            self._state.trimming.count(answer.num_held * ALTERNATIVE_BYTES)

    async def _follow(
        self, generation: Generation, answer: AnswerWriter, asked: Asked, kept: FindBody
    ) -> bytes | None:
        error = await self._generate(generation, answer)
        if error is None:
            await answer.finish()
        elif _may_begin_anew(error, answer, asked) and (body := kept()) is not None:
            return body
        else:
            told = error if isinstance(error, ApiError) else as_api_error(error)
            await answer.fail(told)
        return None

    async def _generate(
        self, generation: Generation, answer: AnswerWriter
    ) -> BatonError | ApiError | None:
        """All choices into the answer. Returns what went wrong, if anything did."""
        runtime = self._state.runtime
        try:
            await answer_choices(runtime.dispatcher, generation, answer)
        except (ApiError, BatonError) as error:
            if isinstance(error, SlowClient):
                runtime.metrics.slow_clients.inc()
            return error
        except ClientGone:
            raise
        except Exception:  # the edge of the process: a mistake of ours must not be silent
            log.exception("request failed", extra={"remedy": "report it with this traceback"})
            return ApiError(500, "internal error", code="internal_error")
        return None


def _may_begin_anew(error: BatonError | ApiError, answer: AnswerWriter, asked: Asked) -> bool:
    is_lost = isinstance(error, BatonError) and error.retryable and not answer.is_begun
    return is_lost and asked.choice.is_other_now(if_away=isinstance(error, NoWorkers))


def _none() -> None:
    return None
