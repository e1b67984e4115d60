"""`baton chat`: a conversation in the terminal, token by token.

Reads lines from stdin, so it works in a pipe as well. Ctrl-C ends the answer being written, Ctrl-D
the conversation. Keeps the conversation in memory only.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from controlplane.cli.http import (
    HttpSettings,
    RouterUnreachable,
    chat_body,
    error_message,
    get_json,
    stream_event,
)
from protocol.process.settings import load

Message = dict[str, str]


class ChatSettings(HttpSettings):
    """Flags of `baton chat`."""

    model: str = ""
    """Model to talk to. Empty: the one that is served."""
    system: str = ""
    """What the model is told before the conversation. Empty: nothing."""
    temperature: float | None = None
    """Randomness of the answers. None: what the server takes."""
    max_tokens: int | None = None
    """Longest answer. None: what the context has room for."""
    verbose: bool = False
    """After each answer, show its route and timings."""


@dataclass(slots=True)
class Answer:
    """What came of one turn."""

    text: str = ""
    route: str = ""
    request: str = ""
    num_tokens: int = 0
    cached_tokens: int = 0
    first_token_s: float = 0.0
    total_s: float = 0.0
    stopped: bool = False
    """Ended by Ctrl-C; the text is what had come until then."""


@dataclass(slots=True)
class Conversation:
    """The messages so far, and the model that answers them."""

    settings: ChatSettings
    model: str
    messages: list[Message] = field(default_factory=list)

    def ask(self, text: str) -> Answer:
        """Streams the answer to stdout. Raises RouterUnreachable; the turn is then forgotten."""
        settings, asked = self.settings, [*self.messages, {"role": "user", "content": text}]
        chosen = {"temperature": settings.temperature, "max_completion_tokens": settings.max_tokens}
        answer = Answer()
        began = time.monotonic()
        try:
            for piece in _stream(settings, chat_body(self.model, asked, **chosen), answer):
                answer.first_token_s = answer.first_token_s or time.monotonic() - began
                answer.text += piece
                _write(piece)
        except KeyboardInterrupt:
            answer.stopped = True
        _write("\n")
        answer.total_s = time.monotonic() - began
        self.messages = [*asked, {"role": "assistant", "content": answer.text}]
        return answer


def chat(argv: Sequence[str]) -> None:
    """Raises SettingsError or RouterUnreachable."""
    settings = load(ChatSettings, argv, prog="baton chat")
    conversation = Conversation(settings, settings.model or _served_model(settings))
    if settings.system:
        conversation.messages.append({"role": "system", "content": settings.system})
    interactive = sys.stdin.isatty()
    if interactive:
        _write(f"{conversation.model} at {settings.url}. Ctrl-C stops an answer, Ctrl-D ends.\n")
    for line in _lines(interactive=interactive):
        answer = conversation.ask(line)
        if settings.verbose:
            _write(_summary(answer))


def _served_model(settings: HttpSettings) -> str:
    models = get_json(settings, "/v1/models")["data"]
    if not models:
        raise RouterUnreachable(f"{settings.url} serves no model")
    return str(models[0]["id"])


def _lines(*, interactive: bool) -> Iterator[str]:
    """The user's lines that are not blank, until the end of input."""
    if interactive:
        import readline  # noqa: F401 - gives `input` line editing and history
    while True:
        try:
            line = input("> " if interactive else "")
        except EOFError:
            _write("\n" if interactive else "")
            return
        except KeyboardInterrupt:
            _write("\n")
            continue
        if line.strip():
            yield line


def _stream(settings: HttpSettings, body: dict[str, Any], answer: Answer) -> Iterator[str]:
    """Pieces of text; fills in what `answer` learns from headers and usage."""
    url = settings.url.rstrip("/") + "/v1/chat/completions"
    timeout = httpx.Timeout(10.0, read=120.0)
    try:
        with httpx.stream(
            "POST", url, json=body, headers=settings.headers, timeout=timeout
        ) as response:
            if response.status_code != 200:
                response.read()
                raise RouterUnreachable(f"{response.status_code}: {error_message(response)}")
            answer.route = response.headers.get("x-baton-route", "")
            answer.request = response.headers.get("x-request-id", "")
            yield from _pieces(response, answer)
    except httpx.HTTPError as error:
        raise RouterUnreachable(f"{url}: {error}") from error


def _pieces(response: httpx.Response, answer: Answer) -> Iterator[str]:
    for line in response.iter_lines():
        event = stream_event(line)
        if usage := event.get("usage"):
            answer.num_tokens = usage["completion_tokens"]
            details = usage.get("prompt_tokens_details") or {}
            answer.cached_tokens = details.get("cached_tokens", 0)
        for choice in event.get("choices", ()):
            if text := choice["delta"].get("content"):
                yield text


def _summary(answer: Answer) -> str:
    ended = "stopped" if answer.stopped else f"{answer.num_tokens} tokens"
    return (
        f"[{answer.route}; first token {answer.first_token_s:.3f} s, {ended} in "
        f"{answer.total_s:.3f} s, {answer.cached_tokens} prompt tokens cached; {answer.request}]\n"
    )


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
