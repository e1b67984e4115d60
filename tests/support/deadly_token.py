"""Workers that a token kills: whoever is to compute it ends at once, without a word."""

import os
import runpy
import signal
from collections.abc import Sequence
from pathlib import Path

from tools.python_path import python_path

ROOT = Path(__file__).parents[2]
TOKEN = "DEADLY_TOKEN"
ROLES = ("prefill_worker", "decode_worker")


def deadly(folder: Path, *, token: int) -> dict[str, str]:
    """The environment in which `python -m decode_worker`, or `prefill_worker`, is such a worker:
    packages of those names in `folder` go before the product's, and have all of them but
    `__main__`."""
    extended = "from pkgutil import extend_path\n\n__path__ = extend_path(__path__, __name__)\n"
    for role in ROLES:
        package = folder / role
        package.mkdir()
        (package / "__init__.py").write_text(extended)
        main = f"from support.deadly_token import run\n\nrun({role!r})\n"
        (package / "__main__.py").write_text(main)
    path = python_path(folder, ROOT, ROOT / "tests")
    return {"PYTHONPATH": path, "PYTHONSAFEPATH": "1", TOKEN: str(token)}


def run(role: str) -> None:
    """The product's own `__main__`, with a runner that dies."""
    from engine.batch import Chunk
    from engine.runner.contract import ComputedStep
    from engine.runner.cpu import TorchRunner

    token, launch = int(os.environ[TOKEN]), TorchRunner.launch

    def launch_or_die(runner: TorchRunner, chunks: Sequence[Chunk]) -> ComputedStep:
        if any(token in chunk.token_ids for chunk in chunks):
            os.kill(os.getpid(), signal.SIGKILL)
        return launch(runner, chunks)

    TorchRunner.launch = launch_or_die  # type: ignore[method-assign,assignment]
    runpy.run_path(str(ROOT / role / "__main__.py"), run_name="__main__")
