"""The anthropic SDK: messages, thinking, tools and their runner, parsing, counting, refusals."""

import sys

import anthropic
from pydantic import BaseModel

URL, MODEL = sys.argv[1:3]
client = anthropic.Anthropic(base_url=URL, api_key="none", max_retries=0)
TOOL = {
    "name": "get_weather",
    "description": "The weather of a city",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Paris", "Oslo"]}},
        "required": ["city"],
    },
}
# This SDK has no argument for it any more.
GREEDY = {"extra_body": {"temperature": 0}}
ASK = [{"role": "user", "content": "What is the weather in Paris?"}]


class Person(BaseModel):
    name: str
    age: int


def messages() -> None:
    whole = client.messages.create(model=MODEL, max_tokens=20, messages=ASK, **GREEDY)
    with client.messages.stream(model=MODEL, max_tokens=20, messages=ASK, **GREEDY) as stream:
        streamed = stream.get_final_message()
    assert [block.type for block in whole.content] == ["text"]
    assert streamed.content[0].text == whole.content[0].text
    assert whole.stop_reason == streamed.stop_reason
    assert whole.stop_reason in ("end_turn", "max_tokens")
    assert streamed.usage.output_tokens == whole.usage.output_tokens > 0


def tools() -> None:
    asked = {"model": MODEL, "max_tokens": 200, "messages": ASK, "tools": [TOOL]}
    whole = client.messages.create(**asked, tool_choice={"type": "any"}, **GREEDY)
    assert whole.stop_reason == "tool_use"
    (call,) = [block for block in whole.content if block.type == "tool_use"]
    assert call.name == "get_weather" and call.input["city"] in ("Paris", "Oslo")
    with client.messages.stream(**asked, tool_choice={"type": "any"}, **GREEDY) as stream:
        kinds = {event.type for event in stream}
        (streamed,) = [b for b in stream.get_final_message().content if b.type == "tool_use"]
    assert streamed.input == call.input
    assert {"message_start", "content_block_start", "message_delta", "message_stop"} <= kinds
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "sunny"}
    turns = [
        *ASK,
        {"role": "assistant", "content": whole.content},
        {"role": "user", "content": [result]},
    ]
    last = client.messages.create(model=MODEL, max_tokens=30, messages=turns, tools=[TOOL])
    assert last.stop_reason in ("end_turn", "max_tokens", "tool_use")


def run_tools() -> None:
    cities = []

    @anthropic.beta_tool
    def get_weather(city: str) -> str:
        """Get the weather of a city."""
        cities.append(city)
        return "sunny"

    # It asks for a conversation held by the server first, and goes on without when refused.
    told = client.beta.messages.tool_runner(
        model=MODEL, max_tokens=100, messages=ASK, tools=[get_weather],
        tool_choice={"type": "any"}, max_iterations=2, **GREEDY,
    )  # fmt: skip
    assert [message.stop_reason for message in told] == ["tool_use", "tool_use"]
    assert len(cities) == 2


def thoughts() -> None:
    asked = {"model": MODEL, "max_tokens": 1500, "messages": ASK}
    with client.messages.stream(
        **asked, thinking={"type": "enabled", "budget_tokens": 1024}, **GREEDY
    ) as stream:
        told = "".join(event.thinking for event in stream if event.type == "thinking")
        thinking = stream.get_final_message().content[0]
    assert thinking.type == "thinking" and thinking.thinking == told and thinking.signature


def parsed() -> None:
    asked = {"model": MODEL, "max_tokens": 400, "messages": ASK, "output_format": Person}
    assert isinstance(client.messages.parse(**asked, **GREEDY).parsed_output, Person)
    with client.messages.stream(**asked, **GREEDY) as stream:
        assert isinstance(stream.get_final_message().parsed_output, Person)


def counting() -> None:
    counted = client.messages.count_tokens(model=MODEL, messages=ASK, tools=[TOOL])
    used = client.messages.create(model=MODEL, messages=ASK, tools=[TOOL], max_tokens=1).usage
    cached = used.cache_read_input_tokens or 0
    assert counted.input_tokens == used.input_tokens + cached


def refused() -> None:
    try:
        client.messages.create(model="other", max_tokens=1, messages=ASK)
    except anthropic.NotFoundError as error:
        assert error.body["error"]["type"] == "not_found_error"
    else:
        raise AssertionError("a model that is not here was served")
    long = [{"role": "user", "content": "long " * 4000}]
    try:
        client.messages.create(model=MODEL, max_tokens=1, messages=long)
    except anthropic.BadRequestError as error:
        assert error.body["error"]["message"].startswith("prompt is too long: ")
    else:
        raise AssertionError("a prompt beyond the context was served")
    assert [model.id for model in client.models.list()] == [MODEL]


for check in (messages, tools, run_tools, thoughts, parsed, counting, refused):
    check()
