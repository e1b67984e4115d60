"""How `baton chat` and `baton status` reach a running router, and what they say when they cannot.

The door to HTTP of the command line; the supervisor has its own polling.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
from pydantic import Field

from protocol.errors import BatonError
from protocol.process.settings import CommandSettings, bearer


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

    @property
    def headers(self) -> dict[str, str]:
        return bearer(self.api_key)


def get_json(settings: HttpSettings, path: str, *, timeout_s: float = 10.0) -> Any:
    """Raises RouterUnreachable, saying what was asked and what came back."""
    url = settings.url.rstrip("/") + path
    try:
        answer = httpx.get(url, headers=settings.headers, timeout=timeout_s)
    except httpx.HTTPError as error:
        raise RouterUnreachable(f"no answer from {url}: {error}") from error
    if answer.status_code != 200:
        raise RouterUnreachable(f"{url} answered {answer.status_code}: {error_message(answer)}")
    try:
        return answer.json()
    except ValueError as error:
        raise RouterUnreachable(f"{url} did not answer JSON: is this a Baton router?") from error


def chat_body(
    model: str, messages: Sequence[Mapping[str, str]], **chosen: float | None
) -> dict[str, Any]:
    """Asks for a stream that ends with its usage. What is chosen as None is left to the server."""
    body = {"model": model, "messages": messages, "stream": True}
    given = {key: value for key, value in chosen.items() if value is not None}
    return {**body, "stream_options": {"include_usage": True}, **given}


def stream_event(line: str) -> dict[str, Any]:
    """The JSON of one line of a stream; empty for a line that has none.

    Raises RouterRefused for an error in place of the next tokens.
    """
    payload = line.removeprefix("data: ")
    if payload in (line, "[DONE]"):
        return {}
    try:
        event: dict[str, Any] = json.loads(payload)
    except ValueError as error:
        raise RouterRefused(f"not an event of a stream: {payload[:80]!r}") from error
    if "error" in event:
        said = event["error"]
        raise RouterRefused(str(said.get("message", said)), code=str(said.get("code")))
    return event


def refusal(answer: httpx.Response) -> RouterRefused:
    """What an answer that is no 200 says."""
    try:
        code = str(answer.json()["error"]["code"])
    except (ValueError, KeyError, TypeError):
        code = ""
    return RouterRefused(f"{answer.status_code}: {error_message(answer)}", code=code)


def error_message(answer: httpx.Response) -> str:
    """The message of an OpenAI error object, else the start of the body."""
    try:
        return str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return answer.text[:200].strip()
