"""smolagents: steps that call tools, and steps of code held by a schema."""

import sys

from smolagents import CodeAgent, OpenAIServerModel, ToolCallingAgent, tool
from smolagents.memory import ActionStep
from smolagents.models import ChatMessage, MessageRole

URL, MODEL = sys.argv[1:3]


@tool
def get_weather(city: str) -> str:
    """The weather of a city.

    Args:
        city: Its name.
    """
    return f"sunny in {city}"


model = OpenAIServerModel(
    MODEL, api_base=f"{URL}/v1", api_key="none", max_tokens=300, temperature=0
)
asked = [ChatMessage(role=MessageRole.USER, content="Hi")]
parts = [delta.content or "" for delta in model.generate_stream(asked)]
assert "".join(parts) == model.generate(asked).content

for streamed in (False, True):
    agent = ToolCallingAgent(
        tools=[get_weather], model=model, max_steps=2, verbosity_level=0, stream_outputs=streamed
    )
    agent.prompt_templates["system_prompt"] = "Use tools."
    agent.run("What is the weather in Paris?")
    steps = [step for step in agent.memory.steps if isinstance(step, ActionStep)]
    names = {call.name for step in steps for call in step.tool_calls or ()}
    assert names and names <= {"get_weather", "final_answer"}, [step.error for step in steps]

code = CodeAgent(
    tools=[], model=model, max_steps=1, verbosity_level=0, use_structured_outputs_internally=True
)
code.prompt_templates["system_prompt"] = "Write code."
code.run("What is 3 plus 4?")
step, *_ = [step for step in code.memory.steps if isinstance(step, ActionStep)]
assert step.model_output.startswith("{") and '"thought"' in step.model_output, step.model_output
