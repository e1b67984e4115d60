"""An answer given as server-sent events, one chunk per token, written as the token is said.

Everything of a chunk that does not change is formatted once per choice: per token there is one
JSON string to encode and one write. The response begins with the first token, so what is refused
before it is still a plain status; an error after it is an event `{"error": ...}` and the end of
the stream, without `[DONE]`.
"""

from collections.abc import Callable, Sequence

import msgspec

from protocol.formats.contract import CallStart, Content, OutputEvent
from protocol.messages import Token
from router.api.errors import ApiError
from router.api.generation import Generation
from router.fast_path.socket_events import SocketEvents
from router.http.answer import AnswerWriter, Usage, route_header
from router.http.event_stream import EventStream
from router.http.exchange import Exchange
from router.http.openai.json_answer import logprobs_of
from router.http.openai.logprobs import TextLogprobs, echoed_entries
from router.openai.chat_message import delta, finish_reason
from router.requests.events import Ended, Read, Scored
from router.requests.token_listener import PlainListener, TokenListener

DONE = b"data: [DONE]\n\n"
NONE = b"null"
_encode = msgspec.json.encode
_ROLE = _encode({"role": "assistant", "content": "", "refusal": None})


class Frames:
    """The chunks of one request as bytes."""

    def __init__(self, generation: Generation, usage: Usage) -> None:
        chat = generation.kind == "chat"
        common = {
            "id": generation.id,
            "object": "chat.completion.chunk" if chat else "text_completion",
            "created": generation.created,
            "model": generation.model,
            "system_fingerprint": None,
        }
        self._head = b"data: " + _encode(common)[:-1] + b',"choices":['
        self._tail = b"]" + (b',"usage":null' if generation.include_usage else b"") + b"}\n\n"
        self._usage = usage if generation.continuous_usage else None
        name = b'"delta":' if chat else b'"text":'
        self._heads = [
            self._head + b'{"index":%d,' % index + name for index in range(len(generation.requests))
        ]
        self._shown, self._nothing = (delta, b"{}") if chat else (_text, b'""')
        self._generation = generation

    def opening(self, index: int, logprobs: bytes = NONE) -> bytes:
        """What comes before a choice's first text: the role, or the echoed prompt, perhaps with
        the entry of its first token."""
        generation, more = self._generation, b""
        if generation.return_token_ids:
            more = b',"prompt_token_ids":' + _encode(generation.requests[index].token_ids)
        if generation.kind == "chat":
            frame = self._chunk(index, _ROLE)
            return frame[: -len(b"}\n\n")] + more + b"}\n\n"
        echo = generation.echoes[index]
        is_shown = echo or more or logprobs != NONE
        return self._chunk(index, _encode(echo), logprobs, more=more) if is_shown else b""

    def text(self, index: int, text: str, logprobs: bytes = NONE) -> bytes:
        return self._chunk(index, self._shown(Content(text)), logprobs)

    def around_text(self, index: int) -> tuple[bytes, bytes]:
        """What of `text` comes before and after the text as a JSON string."""
        before, after = self.text(index, "").rsplit(b'""', 1)
        return before, after

    def shown(self, events: Sequence[OutputEvent], *, anyway: bool) -> list[bytes]:
        """What the events tell, a chunk each; `anyway`: at least one."""
        shown = [text for event in events if (text := self._shown(event))]
        return [self._nothing] if anyway and not shown else shown

    def chunks(self, index: int, shown: Sequence[bytes], logprobs: bytes, more: bytes) -> bytes:
        """`logprobs` and `more`, of the token, are in the first."""
        first = self._chunk(index, shown[0], logprobs, more=more)
        return first + b"".join(self._chunk(index, text) for text in shown[1:])

    def closing(self, index: int, reason: str, stopped_by: int | str | None, more: bytes) -> bytes:
        more += b',"stop_reason":' + _encode(stopped_by)
        reason_shown = b'"%s"' % reason.encode()
        return self._chunk(index, self._nothing, finish_reason=reason_shown, more=more)

    def usage(self, usage: Usage) -> bytes:
        return self._head + b"]" + _usage_tail(usage)

    def _chunk(
        self,
        index: int,
        shown: bytes,
        logprobs: bytes = NONE,
        finish_reason: bytes = NONE,
        more: bytes = b"",
    ) -> bytes:
        return b'%b%b,"logprobs":%b,"finish_reason":%b%b}%b' % (
            self._heads[index],
            shown,
            logprobs,
            finish_reason,
            more,
            self._tail if self._usage is None else b"]" + _usage_tail(self._usage),
        )


def _text(event: OutputEvent) -> bytes:
    assert isinstance(event, Content), "a completion has no parser"
    return _encode(event.text)


def _usage_tail(usage: Usage) -> bytes:
    return b',"usage":' + _encode(usage.shape()) + b"}\n\n"


class SseAnswer(AnswerWriter):
    """Writes each event as it comes."""

    def __init__(self, generation: Generation, exchange: Exchange) -> None:
        super().__init__(generation, exchange)
        self.frames = Frames(generation, self.usage)
        num_choices = len(generation.requests)
        self._logprobs = [logprobs_of(generation, index) for index in range(num_choices)]
        self._is_plain = (
            self._parsers is None
            and self._logprobs[0] is None
            and not generation.return_token_ids
            and not generation.continuous_usage
        )
        """Tokens tell nothing but their text."""
        self._is_several = num_choices > 1
        self._has_calls = [False] * num_choices
        self._untold: list[list[int]] = [[] for _ in range(num_choices)]
        """Token ids that no chunk has named yet, if they are to be told."""
        self.stream = EventStream(exchange)

    @property
    def is_begun(self) -> bool:
        return self.stream.is_begun

    def choice(self, index: int) -> TokenListener:
        if not self._is_plain:
            return super().choice(index)
        return PlainChoice(self, index) if self._is_several else OnlyChoice(self, index)

    def read(self, index: int, read: Read) -> None:
        assert isinstance(read, Scored), "nobody asks for a vector here"
        scores, logprobs = self._generation.scores, self._logprobs[index]
        assert scores is not None and scores.echoed is not None
        assert isinstance(logprobs, TextLogprobs)
        self.open()  # with the entry of the first token
        entries = echoed_entries(logprobs, read, num_top=scores.echoed)
        told = self.frames.text(index, "", _encode(logprobs.join(entries)))
        self.stream.write_anyway(told)

    def token(self, index: int, token: Token) -> None:
        self.open()
        if frame := self._told(index, token):
            self.stream.write(frame)

    def _told(self, index: int, token: Token) -> bytes:
        if self._generation.return_token_ids:
            self._untold[index].append(token.token_id)
        logprobs, entry = self._logprobs[index], NONE
        if logprobs is not None:
            entry = _encode(logprobs.join([logprobs.entry(token)]))
        return self._frames_of(index, self.events(index, token), entry)

    async def ended(self, index: int, ended: Ended) -> None:
        self.usage.ended(index, ended)
        self.open()
        frame = self._frames_of(index, self.last_events(index, ended), NONE)
        reason = finish_reason(ended.finish_reason, has_calls=self._has_calls[index])
        more = self._token_ids(index)
        await self.stream.write_waiting(
            frame + self.frames.closing(index, reason, ended.stopped_by, more)
        )

    def _frames_of(self, index: int, events: Sequence[OutputEvent], logprobs: bytes) -> bytes:
        if any(isinstance(event, CallStart) for event in events):
            self._has_calls[index] = True
        shown = self.frames.shown(events, anyway=logprobs != NONE)
        if not shown:
            return b""
        return self.frames.chunks(index, shown, logprobs, self._token_ids(index))

    def _token_ids(self, index: int) -> bytes:
        if not self._generation.return_token_ids:
            return b""
        told, self._untold[index] = self._untold[index], []
        return b',"token_ids":' + _encode(told)

    async def finish(self) -> None:
        usage = self.frames.usage(self.usage) if self._generation.include_usage else b""
        await self.stream.write_waiting(usage + DONE, is_last=True)

    async def fail(self, error: ApiError) -> None:
        if self.stream.is_begun:
            told = b"data: " + self._exchange.show_error(error) + b"\n\n"
            await self.stream.write_waiting(told, is_last=True)
        else:
            await self._exchange.refuse(error)

    def open(self) -> None:
        """All choices at once and in order: OpenAI's reader of streams fails on other orders."""
        if not self.stream.is_begun:
            self.stream.begin(route_header(self._route))
            opening = b"".join(map(self._opening, range(len(self._generation.requests))))
            self.stream.write_anyway(opening)

    def _opening(self, index: int) -> bytes:
        logprobs, scores = self._logprobs[index], self._generation.scores
        if scores is None or not isinstance(logprobs, TextLogprobs):
            return self.frames.opening(index)
        first = logprobs.first_entry(self._generation.requests[index].token_ids[0])
        return self.frames.opening(index, _encode(logprobs.join([first])))


class PlainChoice:
    """A choice whose tokens tell nothing but their text: the usual case."""

    __slots__ = ("_after", "_answer", "_before", "_stream", "_usage", "_write", "placed")

    def __init__(self, answer: SseAnswer, index: int) -> None:
        self._answer, self._stream, self._usage = answer, answer.stream, answer.usage
        self._before, self._after = answer.frames.around_text(index)
        self._write: Callable[[bytes], int] | None = None
        """Once the stream is begun."""
        self.placed = answer.placed

    def read(self, read: Read) -> None:
        raise AssertionError("nothing is asked for of its prompt")

    def token(self, token: Token) -> None:
        self._usage.completion_tokens += 1
        write = self._write
        if write is None:
            self._answer.open()
            write = self._write = self._stream.write_now
        if token.text:
            num_bytes = write(b"".join((self._before, _encode(token.text), self._after)))
            if num_bytes:
                self._stream.check_lag(num_bytes)


class OnlyChoice(PlainChoice, PlainListener):
    """A plain choice without others, whose events would not stay in order with those that go past
    the stream."""

    __slots__ = ()

    def lend_socket(self, give_back: Callable[[], None]) -> SocketEvents | None:
        lent = self._stream.door.lend_socket(give_back)
        if lent is None:
            return None
        return SocketEvents(
            socket=lent.descriptor,
            is_chunked=lent.is_chunked,
            before=self._before,
            after=self._after,
        )

    def note_passed(self, num_tokens: int, rest: bytes) -> None:
        self._usage.completion_tokens += num_tokens
        if rest:
            self._stream.check_lag(self._stream.door.write_rest(rest))
