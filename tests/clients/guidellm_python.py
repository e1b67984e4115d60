"""guidellm: a short benchmark, of which every request succeeds."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

URL, MODEL, FOLDER = sys.argv[1:4]
GUIDELLM = Path(sys.executable).with_name("guidellm")
with tempfile.TemporaryDirectory() as home:
    report = Path(home, "report.json")
    done = subprocess.run(
        [GUIDELLM, "run", "--backend", f"kind=openai_http,target={URL},model={MODEL}",
         "--tokenizer", f"kind=huggingface_auto,model={FOLDER}", "--profile", "kind=synchronous",
         "--constraint", "kind=max_requests,count=4", "--output", f"kind=json,path={report}",
         "--data", "kind=synthetic_text,prompt_tokens=32,output_tokens=8", "--disable-console"],
        cwd=home, capture_output=True, text=True, timeout=250, check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    (benchmark,) = json.loads(report.read_text())["benchmarks"]
    totals = benchmark["metrics"]["request_totals"]
    assert totals["errored"] == 0 and totals["successful"] == 4, totals
