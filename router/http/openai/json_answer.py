"""An answer given whole: choices are collected, then sent as one JSON object."""

from collections.abc import Sequence
from typing import Any

from protocol.formats.contract import OutputEvent
from protocol.messages import Token
from router.api.errors import ApiError
from router.api.generation import MAX_ALTERNATIVES, Generation, answer_too_large
from router.http.answer import AnswerWriter, route_header
from router.http.exchange import Exchange
from router.http.json_pieces import respond_json
from router.http.openai.logprobs import (
    ChatLogprobs,
    ListedScores,
    Logprobs,
    TextLogprobs,
    echoed_entries,
)
from router.openai.chat_message import ChatMessage, finish_reason
from router.requests.events import Ended, Read, Scored


class JsonChoice:
    """One choice as it grows."""

    def __init__(self, generation: Generation, index: int) -> None:
        self.index = index
        self.logprobs = logprobs_of(generation, index)
        self._generation = generation
        self._message = ChatMessage()
        self._entries: list[Any] = []
        self._token_ids: list[int] = []
        self._ended: Ended | None = None
        scores, self._listed = generation.scores, None
        self._num_echoed = None if scores is None else scores.echoed
        if scores is not None and scores.listed is not None:
            self._listed = ListedScores(generation.chosen.text.tokenizer, num_top=scores.listed)
        if self._num_echoed is not None and isinstance(self.logprobs, TextLogprobs):
            first = generation.requests[index].token_ids[0]
            self._entries.append(self.logprobs.first_entry(first))

    def read(self, scored: Scored) -> None:
        if self._listed is not None:
            self._listed.add(scored)
        if self._num_echoed is not None and isinstance(self.logprobs, TextLogprobs):
            self._entries += echoed_entries(self.logprobs, scored, num_top=self._num_echoed)

    def add(self, token: Token, events: Sequence[OutputEvent]) -> None:
        self._message.add(events)
        if self.logprobs is not None:
            self._entries.append(self.logprobs.entry(token))
        if self._generation.return_token_ids:
            self._token_ids.append(token.token_id)

    def end(self, ended: Ended, events: Sequence[OutputEvent]) -> None:
        self._message.add(events)
        self._ended = ended

    def shape(self) -> dict[str, Any]:
        assert self._ended is not None, f"choice {self.index} has no ending"
        generation, message = self._generation, self._message.shape()
        shown: dict[str, Any] = {"index": self.index}
        if generation.kind == "chat":
            shown["message"] = message
        else:
            shown["text"] = generation.echoes[self.index] + message["content"]
        reason, has_calls = self._ended.finish_reason, "tool_calls" in message
        shown |= {
            "logprobs": None if self.logprobs is None else self.logprobs.join(self._entries),
            "finish_reason": finish_reason(reason, has_calls=has_calls),
            "stop_reason": self._ended.stopped_by,
        }
        if generation.return_token_ids:
            shown["token_ids"] = self._token_ids
            if generation.kind == "text":
                shown["prompt_token_ids"] = list(generation.requests[self.index].token_ids)
        return shown if generation.kind == "chat" else shown | self.listed

    @property
    def listed(self) -> dict[str, Any]:
        """vLLM's `prompt_logprobs`, if they were asked for."""
        return {} if self._listed is None else {"prompt_logprobs": self._listed.entries}


class JsonAnswer(AnswerWriter):
    """Sends one JSON object, or one error object, at the end."""

    def __init__(self, generation: Generation, exchange: Exchange) -> None:
        super().__init__(generation, exchange)
        self._choices = [JsonChoice(generation, index) for index in range(len(generation.requests))]

    def read(self, index: int, read: Read) -> None:
        assert isinstance(read, Scored), "nobody asks for a vector here"
        self.num_held += sum(1 + len(score.top) for score in read.scores)
        self._choices[index].read(read)

    def token(self, index: int, token: Token) -> None:
        self.num_held += 1 + len(token.top)
        if self.num_held > MAX_ALTERNATIVES:
            raise answer_too_large(self._generation.kind)
        self._choices[index].add(token, self.events(index, token))

    async def ended(self, index: int, ended: Ended) -> None:
        self.usage.ended(index, ended)
        self._choices[index].end(ended, self.last_events(index, ended))

    async def finish(self) -> None:
        generation = self._generation
        answer: dict[str, Any] = {
            "id": generation.id,
            "object": "chat.completion" if generation.kind == "chat" else "text_completion",
            "created": generation.created,
            "model": generation.model,
            "system_fingerprint": None,
            "choices": [choice.shape() for choice in self._choices],
            "usage": self.usage.shape(),
        }
        if generation.return_token_ids and generation.kind == "chat":
            answer["prompt_token_ids"] = list(generation.requests[0].token_ids)
        if generation.kind == "chat":
            answer |= self._choices[0].listed
        await respond_json(self._exchange, answer, route_header(self._route))

    async def fail(self, error: ApiError) -> None:
        await self._exchange.refuse(error)


def logprobs_of(generation: Generation, index: int) -> Logprobs | None:
    tokenizer, sampling = generation.chosen.text.tokenizer, generation.requests[index].sampling
    if sampling.num_logprobs is None:
        return None
    if generation.kind == "chat":
        return ChatLogprobs(tokenizer, as_ids=generation.tokens_as_ids)
    return TextLogprobs(
        tokenizer,
        skip_special_tokens=sampling.skip_special_tokens,
        as_ids=generation.tokens_as_ids,
    )
