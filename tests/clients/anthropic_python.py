"""The anthropic SDK: messages, tools, counting, whole and streamed."""

import sys

import anthropic

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


for check in (messages, tools, counting, refused):
    check()
