"""A command under compute-sanitizer: `... NAME MODULE ARGUMENT ...`; tells a row.

Without the tool it says so and passes nothing: there is none in an image without CUDA's toolkit.
"""

import shutil
import subprocess
import sys
from pathlib import Path

from bench.row import Row, tell

TOOL = "compute-sanitizer"
PLACES = (Path("/usr/local/cuda/bin") / TOOL, Path("/usr/local/cuda/compute-sanitizer") / TOOL)
FOUND_ERRORS = 99


def main() -> int:
    name, module, *arguments = sys.argv[1:]
    tool = shutil.which(TOOL) or next((str(place) for place in PLACES if place.exists()), None)
    if tool is None:
        tell(Row(part=name, result=f"no {TOOL} on this machine"))
        return 0
    sanitized = [tool, "--tool", "memcheck", "--error-exitcode", str(FOUND_ERRORS)]
    code = subprocess.run([*sanitized, sys.executable, "-m", module, *arguments]).returncode
    said = {0: "no error", FOUND_ERRORS: "errors, see the log"}.get(code, f"exit code {code}")
    tell(Row(part=name, result=said, limit="no error", passed=code == 0))
    return 0 if code == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
