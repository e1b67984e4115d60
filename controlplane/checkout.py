"""Where this source tree is, and what it says about itself.

The shipped model is part of the checkout, not of the wheel: installed elsewhere, `baton up` needs
`--model`.
"""

import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def shipped_model() -> Path:
    return ROOT / "models" / "tiny"


def baton_version() -> str:
    """The checkout's version where there is one, else the installed distribution's."""
    project = ROOT / "pyproject.toml"
    if project.is_file():
        return str(tomllib.loads(project.read_text())["project"]["version"])
    try:
        return version("baton")
    except PackageNotFoundError:
        return "unknown"
