"""LiteLLM by five of its prefixes and four of its APIs, and its fallback when the context ends."""

import asyncio
import json
import os
import sys
from typing import Annotated, Any, Literal

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # offline
import litellm
from pydantic import BaseModel, Field

URL, MODEL = sys.argv[1:3]
BASES = {
    "openai": f"{URL}/v1",
    "hosted_vllm": f"{URL}/v1",
    "lm_studio": f"{URL}/v1",
    "text-completion-openai": f"{URL}/v1",
    "anthropic": URL,
}
ASK = [{"role": "user", "content": "What is the weather in Paris?"}]
WHO = [{"role": "user", "content": "Save a person: Ada, 36 years old."}]
TOO_LONG = [{"role": "user", "content": "word " * 5000}]
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Paris", "Oslo"]}},
            "required": ["city"],
        },
    },
}


class Person(BaseModel):
    """A person with name and age."""

    name: Literal["Ada", "Bob"]
    age: Annotated[int, Field(ge=0, le=120)]


def at(prefix: str) -> dict[str, Any]:
    return {"model": f"{prefix}/{MODEL}", "api_base": BASES[prefix], "api_key": "none"}


def check_text(prefix: str) -> None:
    asked = {**at(prefix), "messages": ASK, "max_tokens": 10, "temperature": 0}
    whole = litellm.completion(**asked)
    chunks = list(litellm.completion(**asked, stream=True, stream_options={"include_usage": True}))
    joined = litellm.stream_chunk_builder(chunks, messages=ASK)
    for answer in (joined, asyncio.run(litellm.acompletion(**asked))):
        assert answer.choices[0].message.content == whole.choices[0].message.content, prefix
        assert answer.usage.total_tokens == whole.usage.total_tokens, prefix


def check_tools(prefix: str) -> None:
    must = {"tools": [TOOL], "tool_choice": "required", "max_tokens": 200, "temperature": 0}
    asked = {**at(prefix), "messages": ASK, **must}
    message = litellm.completion(**asked).choices[0].message
    (call, *_) = message.tool_calls
    assert call.function.name == "get_weather", prefix
    assert json.loads(call.function.arguments)["city"] in ("Paris", "Oslo"), prefix
    streamed = litellm.stream_chunk_builder(list(litellm.completion(**asked, stream=True)))
    (same, *_) = streamed.choices[0].message.tool_calls
    assert json.loads(same.function.arguments) == json.loads(call.function.arguments), prefix
    results = [
        {"role": "tool", "tool_call_id": each.id, "content": "sunny"} for each in message.tool_calls
    ]
    answer = litellm.completion(
        **at(prefix), messages=[*ASK, message, *results], tools=[TOOL], max_tokens=30
    )
    assert answer.usage.completion_tokens > 0, prefix


def check_schema(prefix: str) -> None:
    answer = litellm.completion(
        **at(prefix), messages=WHO, response_format=Person, max_tokens=200, temperature=0
    )
    Person.model_validate_json(answer.choices[0].message.content)


def check_other_apis() -> None:
    said = litellm.responses(**at("openai"), input="Hi", max_output_tokens=10)
    assert said.output and said.usage.output_tokens > 0
    kinds = [e.type for e in litellm.responses(**at("openai"), input="Hi", stream=True)]
    assert kinds[-1] == "response.completed"
    text = litellm.text_completion(**at("text-completion-openai"), prompt="Hi", max_tokens=5)
    assert text.choices[0].text
    message = asyncio.run(
        litellm.anthropic.messages.acreate(**at("anthropic"), messages=ASK, max_tokens=10)
    )
    assert message["role"] == "assistant" and message["usage"]["output_tokens"] > 0
    vectors = litellm.embedding(**at("openai"), input=["one", "two"])
    assert len(vectors.data) == 2 and vectors.data[0]["embedding"]


def check_a_long_prompt(prefix: str) -> None:
    try:
        litellm.completion(**at(prefix), messages=TOO_LONG, max_tokens=10)
    except litellm.ContextWindowExceededError:
        return
    raise AssertionError(f"{prefix}: a prompt beyond the context was served")


def check_fallback() -> None:
    served = {
        "small": at("openai"),
        "large": at("openai") | {"mock_response": "from the large one"},
    }
    router = litellm.Router(
        model_list=[{"model_name": name, "litellm_params": how} for name, how in served.items()],
        context_window_fallbacks=[{"small": ["large"]}],
        num_retries=0,
    )
    answer = router.completion(model="small", messages=TOO_LONG)
    assert answer.choices[0].message.content == "from the large one"


litellm.num_retries = 0
for name in BASES:
    check_text(name)
    if name != "text-completion-openai":
        check_tools(name)
        check_schema(name)
    check_a_long_prompt(name)
check_other_apis()
check_fallback()
