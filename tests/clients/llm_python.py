"""The `llm` command: a prompt, a conversation, a schema, a tool."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

URL, MODEL = sys.argv[1:3]
LLM = Path(sys.executable).with_name("llm")
WEATHER = """
def get_weather(city: str) -> str:
    "Get the weather of a city."
    return "sunny"
"""
with tempfile.TemporaryDirectory() as home:
    models = [
        {
            "model_id": "baton",
            "model_name": MODEL,
            "api_base": f"{URL}/v1",
            "supports_schema": True,
            "supports_tools": True,
        }
    ]
    Path(home, "extra-openai-models.yaml").write_text(json.dumps(models))
    env = {**os.environ, "LLM_USER_PATH": home, "OPENAI_API_KEY": "none"}

    def llm(*args: str) -> str:
        done = subprocess.run(
            [LLM, *args], env=env, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    # The likeliest tokens: a small model's other calls may be no JSON, which ends this client.
    asked = ("-m", "baton", "-o", "max_tokens", "300", "-o", "temperature", "0")
    assert llm(*asked, "Hi").strip()
    assert llm(*asked, "-c", "And then?").strip()
    assert llm(*asked, "--no-stream", "Hi").strip()
    person = json.loads(llm(*asked, "--schema", "name, age int", "Who?"))
    assert isinstance(person["age"], int)
    tool = ("--functions", WEATHER, "--td")
    assert "sunny" in llm(*asked, *tool, "What is the weather in Paris?")
    assert "sunny" in llm(*asked, *tool, "--no-stream", "What is the weather in Paris?")
