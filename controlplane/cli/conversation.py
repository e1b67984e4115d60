"""A conversation with a served model: its messages so far, and one turn after another.

Keeps the conversation in memory only, until it is saved. A turn that fails leaves it as it was.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from pydantic import Field

from controlplane.cli.http import (
    DONE,
    HttpSettings,
    RouterUnreachable,
    chat_body,
    refusal,
    router_client,
    stream_event,
)
from protocol.errors import BatonError

Message = dict[str, str]


class ChatSettings(HttpSettings):
    """Flags of `baton chat`."""

    model: str = ""
    """Model to talk to. Empty: the one that is served."""
    system: str = ""
    """What the model is told before the conversation. Empty: nothing."""
    temperature: float | None = Field(default=None, allow_inf_nan=False)
    """Randomness of the answers. None: what the server takes."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Longest answer. None: what the context has room for."""
    verbose: bool = False
    """After each answer, show its route and timings."""


class NotSaved(BatonError):
    """The conversation could not be written."""


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
class TerminalChat:
    """The messages so far, the model that answers them, and what it was told before."""

    settings: ChatSettings
    model: str
    system: str
    messages: list[Message] = field(default_factory=list)

    @property
    def told(self) -> list[Message]:
        """All that the model gets to see of what was said."""
        before = [{"role": "system", "content": self.system}] if self.system else []
        return [*before, *self.messages]

    def ask(self, text: str, *, show: Callable[[str], None]) -> Answer:
        """Shows the answer as it comes. Raises RouterUnreachable or RouterRefused; the turn is
        then forgotten."""
        settings, asked = self.settings, {"role": "user", "content": text}
        chosen = {"temperature": settings.temperature, "max_completion_tokens": settings.max_tokens}
        body = chat_body(self.model, [*self.told, asked], **chosen)
        answer = Answer()
        began = time.monotonic()
        try:
            for piece in _stream(settings, body, answer):
                answer.first_token_s = answer.first_token_s or time.monotonic() - began
                answer.text += piece
                show(piece)
        except KeyboardInterrupt:
            answer.stopped = True
        except BatonError:
            show("\n" if answer.text else "")
            raise
        show("\n")
        answer.total_s = time.monotonic() - began
        self.messages += [asked, {"role": "assistant", "content": answer.text}]
        return answer

    def save(self, path: Path) -> None:
        """As JSON that a request to the API takes. Raises NotSaved; never replaces a file."""
        said = {"model": self.model, "messages": self.told}
        try:
            with path.expanduser().open("x", encoding="utf-8") as file:
                json.dump(said, file, ensure_ascii=False, indent=1)
                file.write("\n")
        except FileExistsError as error:
            raise NotSaved(f"{path}: is there already; give another name") from error
        except OSError as error:
            raise NotSaved(f"{path}: {error.strerror}") from error
        except (ValueError, RuntimeError) as error:  # no name of a file, or of a user
            raise NotSaved(f"{path}: {error}") from error


def _stream(settings: ChatSettings, body: dict[str, Any], answer: Answer) -> Iterator[str]:
    """Pieces of text; fills in what `answer` learns from headers and usage."""
    url = settings.url.rstrip("/") + "/v1/chat/completions"
    with router_client(settings) as client, client.stream("POST", url, json=body) as response:
        if response.status_code != 200:
            response.read()
            raise refusal(response)
        answer.route = response.headers.get("x-baton-route", "")
        answer.request = response.headers.get("x-request-id", "")
        yield from _pieces(response, answer)


def _pieces(response: httpx.Response, answer: Answer) -> Iterator[str]:
    for line in response.iter_lines():
        if line == DONE:
            return
        event = stream_event(line)
        if event.num_tokens is not None:
            answer.num_tokens, answer.cached_tokens = event.num_tokens, event.cached_tokens
        if event.text:
            yield event.text
    raise RouterUnreachable("the answer broke off before its end")
