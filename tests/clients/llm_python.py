"""The `llm` command: a prompt, a conversation, a schema, a tool."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

URL, MODEL = sys.argv[1:3]
LLM = Path(sys.executable).with_name("llm")
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

    asked = ("-m", "baton", "-o", "max_tokens", "300")
    assert llm(*asked, "Hi").strip()
    assert llm(*asked, "-c", "And then?").strip()
    assert llm(*asked, "--no-stream", "Hi").strip()
    person = json.loads(llm(*asked, "--schema", "name, age int", "Who?"))
    assert isinstance(person["age"], int)
    assert llm(*asked, "-T", "llm_version", "--td", "Which version of llm is this?") is not None
