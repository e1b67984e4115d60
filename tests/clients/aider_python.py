"""aider: one message, answered without an error."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

URL, MODEL = sys.argv[1:3]
AIDER = Path(sys.executable).with_name("aider")
with tempfile.TemporaryDirectory() as home:
    offline = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    server = {"OPENAI_API_KEY": "none", "OPENAI_API_BASE": f"{URL}/v1"}
    env = {**os.environ, "HOME": home, **offline, **server}
    quiet = "--no-git --no-show-model-warnings --no-check-update --no-analytics --no-pretty"
    asked = ("--model", f"openai/{MODEL}", "--yes-always", "--edit-format", "ask")
    for stream in ("--stream", "--no-stream"):
        done = subprocess.run(
            [AIDER, *quiet.split(), *asked, stream, "--map-tokens", "0", "--message", "Hi"],
            cwd=home, env=env, capture_output=True, text=True, timeout=200, check=False,
        )  # fmt: skip
        said = done.stdout + done.stderr
        assert done.returncode == 0 and "Tokens:" in said, said[-2000:]
        assert "litellm." not in said, said[-2000:]  # how it names errors
