"""Baton's own version."""

import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"


def baton_version() -> str:
    """The checkout's version where there is one, else the installed distribution's."""
    if _PROJECT.is_file():
        return str(tomllib.loads(_PROJECT.read_text())["project"]["version"])
    try:
        return version("baton")
    except PackageNotFoundError:
        return "unknown"
