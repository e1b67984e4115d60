"""Messages as clients send them back: what servers added to them asks for nothing."""

import json
from typing import Any

import pytest

from router.api.errors import ApiError
from router.api.parsing import parse_body
from router.openai.messages import read_messages
from router.openai.schemas import ChatRequest


def read(message: dict[str, Any]) -> Any:
    return read_messages(json.dumps([message]).encode())[0]


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": "a", "reasoning_signature": {"by": ["whom"]}},
        {"role": "assistant", "content": [{"type": "text", "text": "a", "logprobs": [1]}]},
        {"role": "tool", "tool_call_id": "1", "content": "a", "artifact": {"x": 1}},
        {"role": "user", "content": "a", "artifact": None},
    ],
)
def test_what_a_server_added_to_its_answer_is_not_read(message: dict[str, Any]) -> None:
    assert read(message).turn("messages[0]").content in ("a", ("a",))


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "user", "content": "a", "mood": "bad"}, "messages[0].mood"),
        ({"role": "system", "content": "a", "mood": 0}, "messages[0].mood"),
        (
            {"role": "user", "content": [{"type": "text", "text": "a", "size": 7}]},
            "messages[0].content[0].size",
        ),
        ({"role": "assistant", "content": "a", "audio": {"id": "x"}}, "messages[0].audio"),
    ],
)
def test_what_a_client_asks_of_a_message_and_we_do_not_know_is_refused(
    message: dict[str, Any], param: str
) -> None:
    with pytest.raises(ApiError) as raised:
        parse_body(ChatRequest, json.dumps({"model": "m", "messages": [message]}).encode())
    assert raised.value.param == param
