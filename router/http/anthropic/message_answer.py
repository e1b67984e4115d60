"""A message of Anthropic's API, given whole or as events while it is made."""

from collections.abc import Iterable, Iterator
from typing import Any

from protocol.messages import Token
from router.anthropic.blocks import BlockChange, OutputBlocks
from router.anthropic.prepare import MessageGeneration
from router.api.errors import ApiError
from router.api.generation import Generation
from router.http.answer import AnswerWriter, route_header
from router.http.anthropic.message_frames import PING, block_frame, event_frame
from router.http.event_stream import EventStream
from router.http.exchange import Exchange
from router.http.json_pieces import respond_json
from router.requests.events import Ended


class MessageAnswer(AnswerWriter):
    """Takes the events of one answer, and says what they changed."""

    def __init__(self, generation: Generation, exchange: Exchange) -> None:
        super().__init__(generation, exchange)
        assert isinstance(generation, MessageGeneration)
        self._is_cut = generation.is_cut
        self._blocks = OutputBlocks(shows_thinking=generation.shows_thinking)
        self._stopped: dict[str, str | None] = {"stop_reason": None, "stop_sequence": None}

    def _changes(self, token: Token) -> Iterator[BlockChange]:
        for event in self.events(0, token):
            yield from self._blocks.add(event)

    def _last_changes(self, ended: Ended) -> Iterator[BlockChange]:
        self.usage.ended(0, ended)
        for event in self.last_events(0, ended):
            yield from self._blocks.add(event)
        yield from self._blocks.end()
        by = ended.stopped_by
        sequence = by if ended.finish_reason == "stop" and isinstance(by, str) else None
        self._stopped = {"stop_reason": self._reason(ended, sequence), "stop_sequence": sequence}

    def _reason(self, ended: Ended, sequence: str | None) -> str:
        if ended.finish_reason == "length":
            return "model_context_window_exceeded" if self._is_cut else "max_tokens"
        if sequence is not None:
            return "stop_sequence"
        return "tool_use" if self._blocks.has_calls else "end_turn"

    def _shape(self) -> dict[str, Any]:
        return {
            "id": self._generation.id,
            "type": "message",
            "role": "assistant",
            "model": self._generation.model,
            "content": [block.shape() for block in self._blocks.blocks],
            **self._stopped,
            "usage": self._usage_shape(),
        }

    def _usage_shape(self) -> dict[str, Any]:
        """The three kinds of input add up to the prompt; what was cached is known at the end."""
        cached = (self.usage.shape()["prompt_tokens_details"] or {}).get("cached_tokens", 0)
        return {
            "input_tokens": self._generation.prompt_tokens - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": self.usage.completion_tokens,
            "output_tokens_details": {"thinking_tokens": self.usage.reasoning_tokens},
        }


class WholeMessage(MessageAnswer):
    """Sends one JSON object, or one error object, at the end."""

    def token(self, index: int, token: Token) -> None:
        self.num_held += 1
        for _ in self._changes(token):
            pass

    async def ended(self, index: int, ended: Ended) -> None:
        for _ in self._last_changes(ended):
            pass

    async def finish(self) -> None:
        await respond_json(self._exchange, self._shape(), route_header(self._route))

    async def fail(self, error: ApiError) -> None:
        await self._exchange.refuse(error)


class StreamedMessage(MessageAnswer):
    """Writes each event as it comes."""

    def __init__(self, generation: Generation, exchange: Exchange) -> None:
        super().__init__(generation, exchange)
        self._stream = EventStream(exchange)

    def token(self, index: int, token: Token) -> None:
        self._open()
        if frame := _frames(self._changes(token)):
            self._stream.write(frame)

    async def ended(self, index: int, ended: Ended) -> None:
        self._open()
        await self._stream.write_waiting(_frames(self._last_changes(ended)))

    async def finish(self) -> None:
        told = event_frame("message_delta", delta=self._stopped, usage=self._usage_shape())
        await self._stream.write_waiting(told + event_frame("message_stop"), is_last=True)

    async def fail(self, error: ApiError) -> None:
        if self._stream.is_begun:
            body = self._exchange.show_error(error)
            await self._stream.write_waiting(b"event: error\ndata: " + body + b"\n\n", is_last=True)
        else:
            await self._exchange.refuse(error)

    def _open(self) -> None:
        if not self._stream.is_begun:
            self._stream.begin(route_header(self._route))
            self._stream.write_anyway(event_frame("message_start", message=self._shape()) + PING)


def _frames(changes: Iterable[BlockChange]) -> bytes:
    return b"".join(map(block_frame, changes))
