"""pydantic-ai: tools and outputs of a type, by chat, responses and messages."""

import sys
from typing import Literal

from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

URL, MODEL = sys.argv[1:3]
openai = OpenAIProvider(base_url=f"{URL}/v1", api_key="none")
models = {
    "chat": OpenAIChatModel(MODEL, provider=openai),
    "responses": OpenAIResponsesModel(MODEL, provider=openai),
    "messages": AnthropicModel(MODEL, provider=AnthropicProvider(base_url=URL, api_key="none")),
}


class Person(BaseModel):
    name: Literal["Ada", "Bob"]
    age: int


for api, model in models.items():
    settings = {"max_tokens": 300, "temperature": 0.0}
    assert Agent(model, model_settings=settings).run_sync("Hi").output is not None, api
    outputs = [ToolOutput(Person), *([] if api == "messages" else [NativeOutput(Person)])]
    for output in outputs:
        agent = Agent(model, output_type=output, model_settings=settings, retries=0)
        assert isinstance(agent.run_sync("Who?").output, Person), (api, output)
