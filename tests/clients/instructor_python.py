"""instructor: by tools, by a schema and by JSON mode, whole and in part."""

import sys

import instructor
import openai
from pydantic import BaseModel

URL, MODEL = sys.argv[1:3]


class Person(BaseModel):
    name: str
    age: int


for mode in (instructor.Mode.TOOLS, instructor.Mode.TOOLS_STRICT, instructor.Mode.JSON_SCHEMA):
    client = instructor.from_openai(
        openai.OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0), mode=mode
    )
    asked = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Who?"}],
        "max_tokens": 300,
        "temperature": 0,
        "max_retries": 0,
    }
    assert isinstance(client.chat.completions.create(**asked, response_model=Person), Person), mode
    *_, last = client.chat.completions.create_partial(**asked, response_model=Person)
    assert isinstance(last.name, str) and isinstance(last.age, int), mode
