"""How `baton chat` and `baton status` reach a running router, and what they say when they cannot.

The door to HTTP of the command line; the supervisor has its own polling.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import httpx
from pydantic import Field, field_validator

from protocol.errors import BatonError
from protocol.process.machine import is_loopback
from protocol.process.settings import CommandSettings, bearer, check_keys

UNREACHABLE = (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError, ImportError)
"""What httpx raises for a router that is not there, and for proxies and certificates that the
environment names in vain."""
VARIABLES = frozenset(
    {"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR"}
)
"""In either case of letters, those of the environment that a client follows."""
DONE = "data: [DONE]"
"""The last line of a stream; one without it was cut off."""
UNLIKE_BATON = (AttributeError, LookupError, TypeError, ValueError, RecursionError)
"""From reading the answer of something else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamEvent:
    """As much of a chat's chunk as is shown."""

    text: str = ""
    num_tokens: int | None = None
    cached_tokens: int = 0


class RouterUnreachable(BatonError):
    """No router answered at the address, or not as a router does."""


class RouterRefused(RouterUnreachable):
    """The router answered with an error; `code` is its word for it."""

    def __init__(self, message: str, *, code: str = "") -> None:
        super().__init__(message)
        self.code = code


class HttpSettings(CommandSettings):
    """Where the router is."""

    url: str = Field(default="http://127.0.0.1:8000", pattern=r"^https?://")
    """Address of the router."""
    api_key: str = Field(default="", repr=False)
    """Sent as a bearer token; of several, separated by commas as the router takes them, the
    first. Empty: none. Better set as BATON_API_KEY than as a flag, which others can read."""

    @field_validator("url")
    @classmethod
    def _address(cls, value: str) -> str:
        with suppress(httpx.InvalidURL):
            url = httpx.URL(value)
            if url.host and 0 <= (url.port or 0) <= 65535:
                return value
        raise ValueError("must be an address such as http://HOST:PORT")

    @field_validator("api_key")
    @classmethod
    def _sendable(cls, value: str) -> str:
        return check_keys(value)

    @property
    def headers(self) -> dict[str, str]:
        return bearer(self.api_key)


@contextmanager
def router_client(settings: HttpSettings) -> Iterator[httpx.Client]:
    """Reaches this machine without a proxy, any other as the environment says. Raises
    RouterUnreachable, naming its variables, for all that httpx raises here or in the body."""
    host = httpx.URL(settings.url).host
    is_here = is_loopback(host) or host in ("0.0.0.0", "::")
    try:
        with httpx.Client(
            headers=settings.headers, timeout=httpx.Timeout(10.0, read=120.0), trust_env=not is_here
        ) as client:
            yield client
    except UNREACHABLE as error:
        named = sorted(name for name in os.environ if name.upper() in VARIABLES)
        by = f"; the environment sets {', '.join(named)}" if named and not is_here else ""
        raise RouterUnreachable(f"no answer from {settings.url}: {error}{by}") from error


def get_json(settings: HttpSettings, path: str, *, timeout_s: float = 10.0) -> Any:
    """Raises RouterUnreachable, saying what was asked and what came back."""
    url = settings.url.rstrip("/") + path
    with router_client(settings) as client:
        answer = client.get(url, timeout=timeout_s)
    if answer.status_code != 200:
        raise RouterUnreachable(f"{url} answered {answer.status_code}: {_said(answer)[0]}")
    try:
        return answer.json()
    except UNLIKE_BATON as error:
        raise RouterUnreachable(f"{url} did not answer JSON: is this a Baton router?") from error


def served_models(settings: HttpSettings) -> list[str]:
    """At least one. Raises RouterUnreachable."""
    answer = get_json(settings, "/v1/models")
    try:
        models = [str(model["id"]) for model in answer["data"]]
    except UNLIKE_BATON as error:
        raise unlike_baton(settings, answer) from error
    if not models:
        raise RouterUnreachable(f"{settings.url} serves no model")
    return models


def unlike_baton(settings: HttpSettings, said: object) -> RouterUnreachable:
    start = repr(said)[:80]
    return RouterUnreachable(f"{settings.url} did not answer as a Baton router does: {start}")


def chat_body(
    model: str, messages: Sequence[Mapping[str, str]], **chosen: float | None
) -> dict[str, Any]:
    """Asks for a stream that ends with its usage. What is chosen as None is left to the server."""
    body = {"model": model, "messages": messages, "stream": True}
    given = {key: value for key, value in chosen.items() if value is not None}
    return {**body, "stream_options": {"include_usage": True}, **given}


def stream_event(line: str) -> StreamEvent:
    """What one line of a stream says; nothing for a line without an event.

    Raises RouterRefused for an error in place of the next tokens.
    """
    payload = line.removeprefix("data: ")
    if payload == line or line == DONE:
        return StreamEvent()
    try:
        event = json.loads(payload)
        said, usage = event.get("error"), event.get("usage") or {}
        refused = said and RouterRefused(str(said["message"]), code=str(said.get("code")))
        text = "".join(one["delta"].get("content") or "" for one in event.get("choices", ()))
        text.encode()
        num_tokens = int(usage["completion_tokens"]) if usage else None
        cached = int((usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0))
    except UNLIKE_BATON as error:
        raise RouterRefused(f"no event of a Baton router's stream: {payload[:80]!r}") from error
    if refused:
        raise refused
    return StreamEvent(text=text, num_tokens=num_tokens, cached_tokens=cached)


def refusal(answer: httpx.Response) -> RouterRefused:
    """What an answer that is no 200 says."""
    message, code = _said(answer)
    return RouterRefused(f"{answer.status_code}: {message}", code=code)


def _said(answer: httpx.Response) -> tuple[str, str]:
    """Message and code of an OpenAI error object, else the start of the body."""
    try:
        error = answer.json()["error"]
        return str(error["message"]), str(error.get("code", ""))
    except (ValueError, KeyError, TypeError, AttributeError):
        return answer.text[:200].strip(), ""
