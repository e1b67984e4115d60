"""smolagents: an agent's step that calls a tool."""

import sys

from smolagents import OpenAIServerModel, ToolCallingAgent, tool
from smolagents.memory import ActionStep

URL, MODEL = sys.argv[1:3]


@tool
def get_weather(city: str) -> str:
    """The weather of a city.

    Args:
        city: Its name.
    """
    return f"sunny in {city}"


model = OpenAIServerModel(MODEL, api_base=f"{URL}/v1", api_key="none", max_tokens=200)
agent = ToolCallingAgent(tools=[get_weather], model=model, max_steps=1, verbosity_level=0)
agent.prompt_templates["system_prompt"] = "Use tools."
agent.run("What is the weather in Paris?")
steps = [step for step in agent.memory.steps if isinstance(step, ActionStep)]
names = {call.name for step in steps for call in step.tool_calls or ()}
assert names and names <= {"get_weather", "final_answer"}, [step.error for step in steps]
