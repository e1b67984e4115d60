"""Errors as clients of Anthropic's API read them, and which clients those are."""

from collections.abc import Container

import msgspec

from router.api.errors import ApiError, ContextExceeded, ShowError, openai_error

_OWN, _SHARED = "/v1/messages", "/v1/models"
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
    504: "timeout_error",
}
_CODES = {("thread", "unsupported_parameter"): "thread_unsupported_request"}
"""By field and code, where clients look for another: told this one, they send whole histories."""


def speaks_anthropic(path: str, header_names: Container[bytes]) -> bool:
    """Whether a request is for this API: its own paths always, those it shares with OpenAI's when
    the client says so. Names are in lower case."""
    is_shared = f"{path}/".startswith(f"{_SHARED}/") and b"anthropic-version" in header_names
    return is_shared or f"{path}/".startswith(f"{_OWN}/")


def show_error_for(path: str, header_names: Container[bytes]) -> ShowError:
    """How an error on `path` is written, as `speaks_anthropic` decides."""
    return anthropic_error if speaks_anthropic(path, header_names) else openai_error


def id_headers(path: str, header_names: Container[bytes]) -> tuple[str, ...]:
    """In which an answer names its request, to whom it may concern."""
    own = ("request-id",) if speaks_anthropic(path, header_names) else ()
    return ("x-request-id", *own)


def anthropic_error(error: ApiError) -> bytes:
    """`{"type": "error", "error": {"type", "message", "details": {"error_code", "param"}}}`,
    where the details are what is known of the two."""
    code = _CODES.get((error.param or "", error.code or ""), error.code)
    details = {"error_code": code, "param": error.param}
    known = {name: value for name, value in details.items() if value is not None}
    shown = {"type": _TYPES.get(error.status, "invalid_request_error"), "message": _message(error)}
    return msgspec.json.encode(
        {"type": "error", "error": shown | ({"details": known} if known else {})}
    )


def _message(error: ApiError) -> str:
    """Clients look for the first words of what is too long, and for the numbers."""
    if isinstance(error, ContextExceeded):
        most = error.context - 1  # beside one token of an answer
        if error.num_tokens > most:
            least = "" if error.exact else "at least "
            return f"prompt is too long: {least}{error.num_tokens} tokens > {most} maximum"
        return (
            f"input length and `max_tokens` exceed context limit: {error.num_tokens} +"
            f" {error.max_tokens} > {error.context}, decrease input length or `max_tokens` and try"
            " again"
        )
    if error.code == "context_length_exceeded":
        return f"prompt is too long: {error.message}"
    return error.message
