"""The limits of a body: what the docs say of them, and that as much as that is accepted."""

import json
from pathlib import Path
from typing import Any

from router.api.parsing import MAX_FIELD_BYTES, parse_body
from router.openai.prompts import MAX_PROMPTS, MAX_TOKEN_IDS
from router.openai.schemas import (
    MAX_BIASES,
    MAX_COPIED_TOKENS,
    MAX_KWARGS_DEPTH,
    MAX_LOGPROBS,
    MAX_STOP_CHARS,
    MAX_STOPS,
    ChatRequest,
    CompletionRequest,
)

HI = [{"role": "user", "content": "hi"}]


def chat(**fields: Any) -> ChatRequest:
    return parse_body(ChatRequest, json.dumps({"model": "m", "messages": HI} | fields).encode())


def completion(**fields: Any) -> CompletionRequest:
    return parse_body(
        CompletionRequest, json.dumps({"model": "m", "prompt": "hi"} | fields).encode()
    )


def test_the_docs_have_the_limits() -> None:
    text = (Path(__file__).parents[4] / "docs" / "api.md").read_text()
    for limit in (
        MAX_STOP_CHARS,
        MAX_BIASES,
        MAX_FIELD_BYTES,
        MAX_TOKEN_IDS,
        MAX_COPIED_TOKENS,
    ):
        assert f"{limit:,}" in text
    for rule in (
        f"a string or up to {MAX_STOPS},",
        f"{MAX_PROMPTS} prompts,",
        f"up to {MAX_LOGPROBS} alternatives",
        f"up to {MAX_KWARGS_DEPTH} levels",
    ):
        assert rule in text


def test_as_much_as_the_docs_say_is_accepted() -> None:
    fields = chat(
        stop=["x" * 1024] * 16,
        metadata={"k" * 62 + f"{i:02}": "x" * 512 for i in range(16)},
        logit_bias={str(i): 0.5 for i in range(1024)},
        stop_token_ids=[1] * 1024,
        cache_salt="s" * 1024,
        chat_template_kwargs={"a": "x" * 65_000},
    )
    assert len(fields.stop) == 16 and len(fields.logit_bias) == 1024
    assert completion(prompt=[7] * (1 << 20)).prompt == ([7] * (1 << 20),)
