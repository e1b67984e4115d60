"""Errors as Anthropic's clients read them, and who gets them."""

import json
from typing import Any

import pytest

from router.anthropic.errors import anthropic_error, show_error_for, speaks_anthropic
from router.api.errors import (
    ApiError,
    bad_field,
    context_exceeded,
    openai_error,
    unsupported_field,
)

VERSION = {b"anthropic-version", b"host"}


def shown(error: ApiError) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(anthropic_error(error))
    assert body["type"] == "error"
    inner: dict[str, Any] = body["error"]
    return inner


@pytest.mark.parametrize(
    "path", ["/v1/messages", "/v1/messages/count_tokens", "/v1/messages/batches"]
)
def test_its_own_paths_are_its_own_whatever_the_client_says(path: str) -> None:
    assert show_error_for(path, set()) is anthropic_error


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/a/b"])
def test_shared_paths_are_the_clients(path: str) -> None:
    assert speaks_anthropic(path, VERSION)
    assert show_error_for(path, {b"host"}) is openai_error


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messagesx", "/v1/modelsx", "/"])
def test_all_other_paths_are_not(path: str) -> None:
    assert not speaks_anthropic(path, VERSION)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (405, "invalid_request_error"),
        (408, "invalid_request_error"),
        (413, "request_too_large"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (503, "overloaded_error"),
        (504, "timeout_error"),
    ],
)
def test_a_status_has_its_kind(status: int, kind: str) -> None:
    assert shown(ApiError(status, "why")) == {"type": kind, "message": "why"}


def test_code_and_field_are_details() -> None:
    error = ApiError(400, "top_k: no", param="top_k", code="unsupported_parameter")
    assert shown(error)["details"] == {"error_code": "unsupported_parameter", "param": "top_k"}
    assert shown(bad_field("top_k", "no"))["details"] == {"param": "top_k"}


def test_a_client_that_asks_for_a_thread_is_told_to_go_on_without() -> None:
    error = unsupported_field("thread")
    assert shown(error)["details"] == {
        "error_code": "thread_unsupported_request",
        "param": "thread",
    }


def test_a_prompt_that_is_too_long_is_said_in_the_words_that_clients_look_for() -> None:
    long = context_exceeded("messages", context=2048, num_tokens=5000, max_tokens=1)
    assert shown(long)["message"] == "prompt is too long: 5000 tokens > 2047 maximum"
    unread = context_exceeded("messages", context=2048, num_tokens=2048, max_tokens=1, exact=False)
    assert shown(unread)["message"] == "prompt is too long: at least 2048 tokens > 2047 maximum"
    both = context_exceeded("messages", context=2048, num_tokens=2000, max_tokens=100)
    assert shown(both)["message"] == (
        "input length and `max_tokens` exceed context limit: 2000 + 100 > 2048, decrease input"
        " length or `max_tokens` and try again"
    )
    pool = ApiError(400, "no memory", code="context_length_exceeded")
    assert shown(pool)["message"] == "prompt is too long: no memory"
