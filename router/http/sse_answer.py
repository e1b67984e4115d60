"""An answer given as server-sent events, one chunk per token, written straight to ASGI.

Everything of a chunk that does not change is formatted once per choice: per token there is one
JSON string to encode and one write. The response begins with the first token, so what is refused
before it is still a plain status; an error after it is an event `{"error": ...}` and the end of
the stream, without `[DONE]`.
"""

import msgspec

from protocol.text.tokenizer import Tokenizer
from router.api.errors import ApiError
from router.api.generation import Generation
from router.http.answer import AnswerWriter, Usage, route_header
from router.http.exchange import Exchange
from router.http.json_answer import logprobs_of
from router.http.logprobs import TextLogprobs, echoed_entries
from router.requests.events import Ended, Read, Scored, Token

DONE = b"data: [DONE]\n\n"
_encode = msgspec.json.encode


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
        self._before, self._after = (b'{"content":', b"}") if chat else (b"", b"")
        self._role = _encode({"role": "assistant", "content": "", "refusal": None}) if chat else b""
        self._no_text = b"{}" if chat else b'""'
        self._echoes = generation.echoes

    def opening(self, index: int, logprobs: bytes = b"null") -> bytes:
        """What comes before a choice's first text: the role, or the echoed prompt, perhaps with
        the entry of its first token."""
        if self._role:
            return self._chunk(index, self._role)
        is_shown = self._echoes[index] or logprobs != b"null"
        return self.text(index, self._echoes[index], logprobs) if is_shown else b""

    def text(self, index: int, text: str, logprobs: bytes = b"null") -> bytes:
        return self._chunk(index, self._before + _encode(text) + self._after, logprobs)

    def closing(self, index: int, reason: str) -> bytes:
        return self._chunk(index, self._no_text, finish_reason=b'"%s"' % reason.encode())

    def usage(self, usage: Usage) -> bytes:
        return self._head + b"]" + _usage_tail(usage)

    def _chunk(
        self, index: int, shown: bytes, logprobs: bytes = b"null", finish_reason: bytes = b"null"
    ) -> bytes:
        return b'%b%b,"logprobs":%b,"finish_reason":%b}%b' % (
            self._heads[index],
            shown,
            logprobs,
            finish_reason,
            self._tail if self._usage is None else b"]" + _usage_tail(self._usage),
        )


def _usage_tail(usage: Usage) -> bytes:
    return b',"usage":' + _encode(usage.shape()) + b"}\n\n"


class SseAnswer(AnswerWriter):
    """Writes each event as it comes."""

    def __init__(self, generation: Generation, exchange: Exchange, *, tokenizer: Tokenizer) -> None:
        super().__init__(generation, exchange, tokenizer=tokenizer)
        self._frames = Frames(generation, self._usage)
        num_choices = len(generation.requests)
        self._logprobs = [
            logprobs_of(generation, index, tokenizer=tokenizer) for index in range(num_choices)
        ]
        self._opened = [False] * num_choices
        self._started = False

    async def read(self, index: int, read: Read) -> None:
        assert isinstance(read, Scored), "nobody asks for a vector here"
        scores, logprobs = self._generation.scores, self._logprobs[index]
        assert scores is not None and scores.echoed is not None
        assert isinstance(logprobs, TextLogprobs)
        opening = self._open(index)  # with the entry of the first token
        entries = echoed_entries(logprobs, read, num_top=scores.echoed)
        await self._write(opening + self._frames.text(index, "", _encode(logprobs.join(entries))))

    async def token(self, index: int, token: Token) -> None:
        frame = self._open(index)
        self._usage.completion_tokens += 1
        logprobs = self._logprobs[index]
        if logprobs is not None:
            entry = _encode(logprobs.join([logprobs.entry(token)]))
            frame += self._frames.text(index, token.text, entry)
        elif token.text:
            frame += self._frames.text(index, token.text)
        if frame:
            await self._write(frame)

    async def ended(self, index: int, ended: Ended) -> None:
        self._usage.ended(index, ended)
        await self._write(self._open(index) + self._frames.closing(index, ended.finish_reason))

    async def finish(self) -> None:
        usage = self._frames.usage(self._usage) if self._generation.include_usage else b""
        await self._write(usage + DONE, more=False)

    async def fail(self, error: ApiError) -> None:
        if self._started:
            await self._write(b"data: " + self._exchange.show_error(error) + b"\n\n", more=False)
        else:
            await self._exchange.refuse(error)

    def _open(self, index: int) -> bytes:
        if self._opened[index]:
            return b""
        self._opened[index] = True
        logprobs, scores = self._logprobs[index], self._generation.scores
        if scores is None or not isinstance(logprobs, TextLogprobs):
            return self._frames.opening(index)
        first = logprobs.first_entry(self._generation.requests[index].token_ids[0])
        return self._frames.opening(index, _encode(logprobs.join([first])))

    async def _write(self, frame: bytes, *, more: bool = True) -> None:
        if not self._started:
            self._started = True
            await self._start()
        await self._exchange.send({"type": "http.response.body", "body": frame, "more_body": more})

    async def _start(self) -> None:
        headers = {
            "content-type": "text/event-stream; charset=utf-8",
            "cache-control": "no-cache",
            "x-accel-buffering": "no",  # nginx would hold the chunks back
            **route_header(self._route),
        }
        raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        await self._exchange.send({"type": "http.response.start", "status": 200, "headers": raw})
