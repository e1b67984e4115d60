"""The openai SDK: chat, tools, parse helpers, responses, completions, embeddings, refusals."""

import sys
from typing import Literal

import openai
from pydantic import BaseModel

URL, MODEL = sys.argv[1:3]
client = openai.OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0)
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Paris", "Oslo"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}
ASK = [{"role": "user", "content": "What is the weather in Paris?"}]
# Answered in full: the stream's helper raises an error where an answer was cut.
FACT = [{"role": "user", "content": "The home of Mira is Rome. What is the home of Mira?"}]


class Weather(BaseModel):
    city: Literal["Paris", "Oslo"]


class Person(BaseModel):
    name: str
    age: int


def chat() -> None:
    asked = {"model": MODEL, "messages": FACT, "max_tokens": 30, "temperature": 0}
    whole = client.chat.completions.create(**asked)
    with client.chat.completions.stream(**asked) as stream:
        streamed = stream.get_final_completion()
    assert streamed.choices[0].message.content == whole.choices[0].message.content
    assert "Rome" in whole.choices[0].message.content


def tools() -> None:
    whole = client.chat.completions.create(
        model=MODEL, messages=ASK, tools=[TOOL], tool_choice="required", seed=1
    )
    (call, *_) = whole.choices[0].message.tool_calls
    assert whole.choices[0].finish_reason == "tool_calls"
    Weather.model_validate_json(call.function.arguments)
    with client.chat.completions.stream(
        model=MODEL, messages=ASK, tools=[TOOL], tool_choice="required", seed=1
    ) as stream:
        for _ in stream:
            pass
        (streamed, *_) = stream.get_final_completion().choices[0].message.tool_calls
    assert streamed.function.arguments == call.function.arguments
    other = {"type": "function", "function": {"name": "get_time"}}
    named = [{"type": "function", "function": {"name": "get_weather"}}]
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": named}}
    (only, *_) = client.chat.completions.create(
        model=MODEL, messages=ASK, tools=[other, TOOL], tool_choice=allowed
    ).choices[0].message.tool_calls  # fmt: skip
    assert only.function.name == "get_weather"
    answered = [
        *ASK,
        whole.choices[0].message,
        {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
    ]
    last = client.chat.completions.create(
        model=MODEL, messages=answered, tools=[TOOL], max_tokens=30
    )
    assert last.choices[0].finish_reason in ("stop", "length", "tool_calls")


def parsed() -> None:
    helper = openai.pydantic_function_tool(Weather, name="get_weather")
    called = client.chat.completions.parse(
        model=MODEL, messages=ASK, tools=[helper], tool_choice="required"
    )
    arguments = called.choices[0].message.tool_calls[0].function.parsed_arguments
    assert isinstance(arguments, Weather)
    answer = client.chat.completions.parse(
        model=MODEL, messages=ASK, response_format=Person, max_tokens=400, temperature=0
    )
    assert isinstance(answer.choices[0].message.parsed, Person)


def responses() -> None:
    whole = client.responses.create(
        model=MODEL, input="What is the weather in Paris?", max_output_tokens=20
    )
    assert whole.output_text is not None and whole.usage.output_tokens > 0
    with client.responses.stream(model=MODEL, input="Hi", max_output_tokens=20) as stream:
        kinds = [event.type for event in stream]
        assert stream.get_final_response().output_text is not None
    assert kinds[0] == "response.created"
    assert kinds[-1] in ("response.completed", "response.incomplete")
    tool = {"type": "function", **TOOL["function"]}
    called = client.responses.create(
        model=MODEL, input="What is the weather in Paris?", tools=[tool], tool_choice="required"
    )
    (call, *_) = [item for item in called.output if item.type == "function_call"]
    Weather.model_validate_json(call.arguments)
    answer = client.responses.parse(
        model=MODEL, input="Who?", text_format=Person, max_output_tokens=400, temperature=0
    )
    assert isinstance(answer.output_parsed, Person)


def responses_go_on() -> None:
    """By a tool's result, and by the id of a kept response."""
    tool = {"type": "function", **TOOL["function"]}
    asked = {"model": MODEL, "tools": [tool], "max_output_tokens": 60}
    with client.responses.stream(**asked, input=ASK, tool_choice="required") as stream:
        first = stream.get_final_response()
    (call, *_) = [item for item in first.output if item.type == "function_call"]
    told = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    second = client.responses.create(**asked, input=[*ASK, *first.output, told], store=True)
    third = client.responses.create(
        **asked, input="And in Oslo?", previous_response_id=second.id, store=True
    )
    assert client.responses.retrieve(third.id).output == third.output
    kinds = [item.type for item in client.responses.input_items.list(third.id, order="asc")]
    assert kinds[:3] == ["message", "function_call", "function_call_output"]
    client.responses.delete(third.id)
    try:
        client.responses.retrieve(third.id)
    except openai.NotFoundError as error:
        assert error.code == "response_not_found"
    else:
        raise AssertionError("a deleted response was found")


def completions() -> None:
    asked = {"model": MODEL, "prompt": ["One", "Two"], "max_tokens": 5, "temperature": 0}
    whole = client.completions.create(**asked, logprobs=1)
    texts = ["", ""]
    for chunk in client.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert [choice.text for choice in whole.choices] == texts
    assert [model.id for model in client.models.list()] == [MODEL]


def refused() -> None:
    try:
        client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "long " * 4000}]
        )
    except openai.BadRequestError as error:
        assert error.code == "context_length_exceeded" and error.request_id
    else:
        raise AssertionError("a prompt beyond the context was served")


def embeddings() -> None:
    floats = client.embeddings.create(model=MODEL, input=["a", "b"], encoding_format="float")
    packed = client.embeddings.create(model=MODEL, input=["a", "b"])  # base64, by default
    assert len(floats.data) == 2
    for one, other in zip(floats.data, packed.data, strict=True):
        assert all(abs(a - b) < 1e-5 for a, b in zip(one.embedding, other.embedding, strict=True))


for check in (
    chat, tools, parsed, responses, responses_go_on, completions, refused, embeddings,
):  # fmt: skip
    check()
