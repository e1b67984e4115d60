"""What takes one request's events and answers its client, whatever the API and its shape."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from protocol.formats.contract import Content, OutputEvent, Reasoning
from protocol.messages import Token
from router.api.errors import ApiError
from router.api.generation import Generation
from router.http.exchange import Exchange
from router.requests.events import Ended, Read, Route
from router.requests.token_listener import TokenListener


class Usage:
    """Tokens of all choices so far."""

    def __init__(self, generation: Generation) -> None:
        self._generation = generation
        self.completion_tokens = 0
        self.reasoning_tokens = 0
        self._cached_tokens: dict[int, int] = {}

    def ended(self, index: int, ended: Ended) -> None:
        """Of several choices of one prompt the one that found least counts."""
        prompt = index // self._generation.n
        known = self._cached_tokens.get(prompt, ended.cached_tokens)
        self._cached_tokens[prompt] = min(known, ended.cached_tokens)

    def shape(self) -> dict[str, Any]:
        """What was cached is known when a choice has ended."""
        prompt_tokens, cached = self._generation.prompt_tokens, self._cached_tokens
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": sum(cached.values())} if cached else None,
        } | self._details()

    def _details(self) -> dict[str, Any]:
        if self._generation.new_parser is None:
            return {}
        return {"completion_tokens_details": {"reasoning_tokens": self.reasoning_tokens}}


class AnswerWriter(ABC):
    """Takes one request's events and answers its client. Exactly one of finish and fail ends it."""

    def __init__(self, generation: Generation, exchange: Exchange) -> None:
        self._generation = generation
        self._exchange = exchange
        self.usage = Usage(generation)
        self._route: Route | None = None
        self.num_held = 0
        """Tokens and alternatives that wait for the end."""
        new_parser, choices = generation.new_parser, generation.requests
        self._parsers = None if new_parser is None else [new_parser() for _ in choices]

    def placed(self, route: Route) -> None:
        """The first of several choices says what the headers show."""
        self._route = self._route or route

    @property
    def is_begun(self) -> bool:
        """The client has something of the answer already."""
        return False

    @property
    def num_tokens_used(self) -> int:
        """Of prompts and output; none where no worker ever had the request."""
        if self._route is None:
            return 0
        return self._generation.prompt_tokens + self.usage.completion_tokens

    def events(self, index: int, token: Token) -> Sequence[OutputEvent]:
        """What a choice's next token says. To be called for each, in order."""
        self.usage.completion_tokens += 1
        if self._parsers is None:
            return (Content(token.text),) if token.text else ()
        events = self._parsers[index].feed(token.token_id, token.text)
        self.usage.reasoning_tokens += any(isinstance(one, Reasoning) for one in events)
        return self._shown(events)

    def last_events(self, index: int, ended: Ended) -> Sequence[OutputEvent]:
        """What was held back until a choice had ended."""
        if self._parsers is None:
            return ()
        is_cut = ended.finish_reason == "length"
        return self._shown(self._parsers[index].finish(is_cut=is_cut))

    def _shown(self, events: Sequence[OutputEvent]) -> Sequence[OutputEvent]:
        if self._generation.show_reasoning:
            return events
        return [one for one in events if not isinstance(one, Reasoning)]

    async def prepare(self) -> None:
        """Whatever takes long and needs no token, before any is asked for."""
        return

    def choice(self, index: int) -> TokenListener:
        """Who takes what is said of one choice."""
        return _Choice(self, index)

    @abstractmethod
    def token(self, index: int, token: Token) -> None:
        """Returns soon. Raises ApiError, or SlowClient, to end the request."""

    def read(self, index: int, read: Read) -> None:
        """What was read of a choice's prompt, if it asks for that: before its first token."""
        raise AssertionError(f"choice {index} asks for nothing of its prompt")

    @abstractmethod
    async def ended(self, index: int, ended: Ended) -> None: ...

    @abstractmethod
    async def finish(self) -> None:
        """Every choice has ended."""

    @abstractmethod
    async def fail(self, error: ApiError) -> None:
        """The request is over. Says so in whatever way is still possible."""


class _Choice:
    def __init__(self, answer: AnswerWriter, index: int) -> None:
        self._answer, self._index = answer, index
        self.placed = answer.placed

    def read(self, read: Read) -> None:
        self._answer.read(self._index, read)

    def token(self, token: Token) -> None:
        self._answer.token(self._index, token)


def route_header(route: Route | None) -> dict[str, str]:
    return {} if route is None else {"x-baton-route": route.reason}
