"""aiperf: a short benchmark of streamed chats, of which every request succeeds."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

URL, MODEL, FOLDER = sys.argv[1:4]
AIPERF = Path(sys.executable).with_name("aiperf")
with tempfile.TemporaryDirectory() as home:
    done = subprocess.run(
        [AIPERF, "profile", "--model", MODEL, "--url", URL, "--endpoint-type", "chat",
         "--streaming", "--tokenizer", FOLDER, "--request-count", "4", "--concurrency", "2",
         "--isl", "32", "--osl", "8", "--ui", "none", "--output-artifact-dir", home],
        cwd=home, capture_output=True, text=True, timeout=250, check=False,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    (report,) = Path(home).rglob("profile_export_aiperf.json")
    told = json.loads(report.read_text())
    assert told["request_count"]["avg"] == 4 and not told.get("error_summary"), told
