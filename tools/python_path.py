"""Where the Python of a child process looks first; what it was told before still counts."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def python_path(*folders: Path | str) -> str:
    """`PYTHONPATH` of a child: `folders`, then what ours has. Packages may lie there alone."""
    before = os.environ.get("PYTHONPATH")
    return os.pathsep.join([*map(str, folders), *([before] if before else [])])
