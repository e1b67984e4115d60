"""openai-agents with its default, which is the Responses API, and with chat."""

import asyncio
import sys
from typing import Annotated, Literal

import openai
from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    SQLiteSession,
    function_tool,
    handoff,
    set_tracing_disabled,
)
from pydantic import BaseModel, Field

URL, MODEL = sys.argv[1:3]
WEATHER = "What is the weather in Paris?"
WHO = "Save a person: Ada, 36 years old."
BOUNDS = {"temperature": 0, "max_tokens": 300}
cities: list[str] = []


@function_tool
def get_weather(city: Literal["Paris", "Oslo"]) -> str:
    """The weather of a city"""
    cities.append(city)
    return f"sunny in {city}"


class Person(BaseModel):
    """A person with name and age."""

    name: Literal["Ada", "Bob"]
    age: Annotated[int, Field(ge=0, le=120)]


async def check(model: OpenAIResponsesModel | OpenAIChatCompletionsModel) -> None:
    must = ModelSettings(tool_choice="required", **BOUNDS)
    # After a tool has run the choice is the model's again, and it answers.
    weather = Agent("weather", model=model, tools=[get_weather], model_settings=must)
    once = weather.clone(tool_use_behavior="stop_on_first_tool")
    answer = await Runner.run(once, WEATHER, max_turns=2)
    assert cities and answer.final_output == f"sunny in {cities[-1]}"
    streamed = Runner.run_streamed(once, WEATHER, max_turns=2)
    kinds = [event.type async for event in streamed.stream_events()]
    assert streamed.final_output == answer.final_output and "raw_response_event" in kinds
    more = [*answer.to_input_list(), {"role": "user", "content": "Thanks!"}]
    plain = Agent(
        "plain", model=model, instructions="Be brief.", model_settings=ModelSettings(**BOUNDS)
    )
    assert isinstance((await Runner.run(plain, more)).final_output, str)

    person = plain.clone(name="person", output_type=Person)
    answer = await Runner.run(person, WHO)
    assert isinstance(answer.final_output, Person)
    streamed = Runner.run_streamed(person, WHO)
    assert [event.type async for event in streamed.stream_events()]
    assert streamed.final_output == answer.final_output
    first = Agent("first", model=model, handoffs=[handoff(person)], model_settings=must)
    answer = await Runner.run(first, WHO)
    assert answer.last_agent is person and isinstance(answer.final_output, Person)

    session = SQLiteSession("one")
    for turn in (1, 2):
        await Runner.run(plain, "Hi", session=session)
        assert len(await session.get_items()) == 2 * turn


async def check_kept(model: OpenAIResponsesModel) -> None:
    kept = Agent("kept", model=model, model_settings=ModelSettings(store=True, **BOUNDS))
    first = await Runner.run(kept, "The code of the lantern is 405.")
    await Runner.run(kept, "What is it?", previous_response_id=first.last_response_id)


async def main() -> None:
    set_tracing_disabled(True)
    client = openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0)
    for kind in (OpenAIResponsesModel, OpenAIChatCompletionsModel):
        await check(kind(MODEL, client))
    await check_kept(OpenAIResponsesModel(MODEL, client))


asyncio.run(main())
