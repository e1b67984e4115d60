"""instructor: by tools, a schema and Responses; whole, in part, and asked again."""

import asyncio
import sys
from typing import Annotated, Literal

import instructor
import openai
from instructor import Mode
from pydantic import BaseModel, Field, field_validator

URL, MODEL = sys.argv[1:3]
CONNECTION = {"base_url": f"{URL}/v1", "api_key": "none", "max_retries": 0}
MESSAGES = [{"role": "user", "content": "Save a person: Ada, 36 years old."}]
refusals: list[str] = []


class Person(BaseModel):
    """A person with name and age."""

    name: Literal["Ada", "Bob"]
    age: Annotated[int, Field(ge=0, le=120)]


class Picky(Person):
    @field_validator("age")
    @classmethod
    def refused_once(cls, age: int) -> int:
        refusals.append("once")
        if len(refusals) == 1:
            raise ValueError("say it again")
        return age


for mode in (Mode.TOOLS, Mode.TOOLS_STRICT, Mode.JSON_SCHEMA, Mode.RESPONSES_TOOLS):
    limit = "max_output_tokens" if mode is Mode.RESPONSES_TOOLS else "max_tokens"
    asked = {"model": MODEL, "messages": MESSAGES, limit: 300, "temperature": 0, "max_retries": 0}
    client = instructor.from_openai(openai.OpenAI(**CONNECTION), mode=mode)
    person, answer = client.chat.completions.create_with_completion(**asked, response_model=Person)
    assert isinstance(person, Person) and answer.usage.total_tokens > 0, mode
    *_, last = client.chat.completions.create_partial(**asked, response_model=Person)
    assert last.name in ("Ada", "Bob") and isinstance(last.age, int), mode  # another schema
    refusals.clear()
    again = client.chat.completions.create(**{**asked, "max_retries": 1}, response_model=Picky)
    assert isinstance(again, Picky) and len(refusals) == 2, mode
    later = instructor.from_openai(openai.AsyncOpenAI(**CONNECTION), mode=mode)
    same = asyncio.run(later.chat.completions.create(**asked, response_model=Person))
    assert same.model_dump() == person.model_dump(), mode
