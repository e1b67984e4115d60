"""A response given whole, or as events while it is made; kept, if its client wants that."""

import asyncio
import logging
import time
from collections.abc import Iterable, Iterator
from typing import Any, Literal, assert_never

import msgspec

from protocol.errors import BatonError
from protocol.messages import Token
from protocol.store.responses import KeptResponse
from router.api.errors import ApiError, openai_error
from router.api.generation import MAX_ALTERNATIVES, Generation
from router.http.answer import AnswerWriter, route_header
from router.http.event_stream import EventStream
from router.http.exchange import Exchange
from router.http.json_pieces import PIECE_BYTES, json_pieces, respond_json
from router.http.openai.json_answer import logprobs_of
from router.http.responses.event_frames import EventFrames
from router.requests.events import Ended
from router.responses.prepare import too_many_logprobs
from router.responses.response_generation import ResponseGeneration
from router.responses.shapes import OutputItem, Status, response_shape
from router.responses.transcript import ItemBegun, ItemChange, ItemEnded, ItemGrown, Transcript

log = logging.getLogger("baton.api")


class ResponseAnswer(AnswerWriter):
    """Takes the events of one answer, and says what they changed."""

    def __init__(self, generation: Generation, exchange: Exchange) -> None:
        super().__init__(generation, exchange)
        assert isinstance(generation, ResponseGeneration)
        self._response = generation
        self._transcript = Transcript(generation.token, as_summary=generation.as_summary)
        self._logprobs = logprobs_of(generation, 0)
        self._pending: list[Any] = []
        """Of tokens whose text has not come yet."""
        self._is_whole = False

    def _changes(self, index: int, token: Token) -> Iterator[ItemChange]:
        if self._logprobs is not None:
            self.num_held += 1 + len(token.top)
            if self.num_held > MAX_ALTERNATIVES:
                raise too_many_logprobs()
            self._pending.append(self._logprobs.entry(token))
        for event in self.events(index, token):
            yield from self._transcript.add(event)
        if not self._transcript.open_message:
            self._pending.clear()

    def _last_changes(self, index: int, ended: Ended) -> Iterator[ItemChange]:
        self.usage.ended(index, ended)
        for event in self.last_events(index, ended):
            yield from self._transcript.add(event)
        self._is_whole = ended.finish_reason == "stop"
        yield from self._transcript.end(is_whole=self._is_whole)

    def _take_entries(self, item: OutputItem | None) -> list[Any]:
        """Those that have waited for a text of `item`."""
        if item is None or item.kind != "message":
            return []
        entries, self._pending = self._pending, []
        item.entries += entries
        return entries

    def _shape(self, status: Status, *, is_kept: bool, **more: Any) -> dict[str, Any]:
        told = {**self._response.told, "store": is_kept}
        return response_shape(told, status=status, output=self._transcript.shapes(), **more)

    async def _final(self) -> tuple[Literal["completed", "incomplete"], dict[str, Any]]:
        status: Literal["completed", "incomplete"] = "completed" if self._is_whole else "incomplete"
        ended = int(time.time()) if self._is_whole else None
        usage = self._usage_shape()
        shape = self._shape(status, is_kept=True, usage=usage, completed_at=ended)
        return status, shape | {"store": await self._keep(shape)}

    async def _keep(self, shape: dict[str, Any]) -> bool:
        """Whether it is kept now: not unless asked for, and not what is too large, or when Redis
        is away; the answer is none the worse for it."""
        response = self._response
        if response.recent is not None:
            output, now = await _encoded(shape["output"]), asyncio.get_running_loop().time()
            response.recent.remember(response.owner, response.id, output, now=now)
        if response.store is None:
            return False
        kept = KeptResponse(response=await _encoded(shape), items=response.items)
        try:
            is_kept = await response.store.keep(response.owner, response.id, kept)
            why = "too large"
        except BatonError as error:
            is_kept, why = False, str(error)
        if not is_kept:
            log.warning("response not kept", extra={"response": response.id, "why": why})
        return is_kept

    def _usage_shape(self) -> dict[str, Any]:
        usage = self.usage.shape()
        cached = (usage["prompt_tokens_details"] or {}).get("cached_tokens", 0)
        return {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": self.usage.reasoning_tokens},
            "total_tokens": usage["total_tokens"],
        }


class WholeResponse(ResponseAnswer):
    """Sends one JSON object, or one error object, at the end."""

    def token(self, index: int, token: Token) -> None:
        self._collect(self._changes(index, token))

    async def ended(self, index: int, ended: Ended) -> None:
        self._collect(self._last_changes(index, ended))

    async def finish(self) -> None:
        _, shape = await self._final()
        await respond_json(self._exchange, shape, route_header(self._route))

    async def fail(self, error: ApiError) -> None:
        await self._exchange.refuse(error)

    def _collect(self, changes: Iterable[ItemChange]) -> None:
        for change in changes:
            if isinstance(change, ItemGrown):
                self._take_entries(change.item)


class StreamedResponse(ResponseAnswer):
    """Writes each event as it comes. A failure after the first is told by two: `error`, which
    clients raise, and `response.failed`."""

    def __init__(self, generation: Generation, exchange: Exchange) -> None:
        super().__init__(generation, exchange)
        self._frames = EventFrames()
        self._stream = EventStream(exchange)
        self._opening: list[bytes] = []

    async def prepare(self) -> None:
        """The first events, which say what was asked for, as large as that is."""
        shape = self._shape("in_progress", is_kept=self._response.store is not None)
        for word in ("created", "in_progress"):
            for piece in self._frames.response(word, shape):
                self._opening.append(piece)
                if len(piece) >= PIECE_BYTES:
                    await asyncio.sleep(0)

    def token(self, index: int, token: Token) -> None:
        self._open()
        if frame := b"".join(self._told(self._changes(index, token))):
            self._stream.write(frame)

    async def ended(self, index: int, ended: Ended) -> None:
        self._open()
        await self._send(self._told(self._last_changes(index, ended)))

    async def finish(self) -> None:
        status, shape = await self._final()
        await self._send(self._frames.response(status, shape), is_last=True)

    async def fail(self, error: ApiError) -> None:
        if not self._stream.is_begun:
            await self._exchange.refuse(error)
            return
        for _ in self._transcript.end(is_whole=False):
            pass
        told = {"code": _FAILURES.get(error.status, "server_error"), "message": error.message}
        shape = self._shape("failed", is_kept=False, error=told, usage=self._usage_shape())
        await self._send(self._frames.error(msgspec.json.decode(openai_error(error))["error"]))
        await self._send(self._frames.response("failed", shape), is_last=True)

    def _open(self) -> None:
        if not self._stream.is_begun:
            self._stream.begin(route_header(self._route))
            for piece in self._opening:
                self._stream.write_anyway(piece)
            self._opening.clear()

    def _told(self, changes: Iterable[ItemChange]) -> Iterator[bytes]:
        for change in changes:
            match change:
                case ItemGrown(item, text):
                    yield from self._frames.grown(item, text, self._take_entries(item))
                case ItemBegun(item):
                    yield from self._frames.begun(item)
                case ItemEnded(item):
                    yield from self._frames.ended(item)
                case _:
                    assert_never(change)

    async def _send(self, pieces: Iterable[bytes], *, is_last: bool = False) -> None:
        """What is small in one write; of what is large, others have their turn in between."""
        frame = bytearray()
        for piece in pieces:
            frame += piece
            if len(frame) >= PIECE_BYTES:
                await self._stream.write_waiting(bytes(frame))
                frame.clear()
                await asyncio.sleep(0)
        await self._stream.write_waiting(bytes(frame), is_last=is_last)


async def _encoded(shape: Any) -> bytes:
    """As JSON, without a long turn of the event loop."""
    whole = bytearray()
    for piece in json_pieces(shape):
        whole += piece
        await asyncio.sleep(0)
    return bytes(whole)


_FAILURES = {429: "rate_limit_exceeded", 400: "invalid_prompt"}
"""Statuses -> codes of `response.error`; others are the server's."""
