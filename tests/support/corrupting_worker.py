"""A decode worker that corrupts the first blocks it receives before it verifies them."""

import logging
import os
import runpy
from pathlib import Path

from support.tampering import Tamper, tampered

from tools.python_path import python_path

ROOT = Path(__file__).parents[2]
NUM_BLOCKS = "CORRUPT_BLOCKS"
log = logging.getLogger(__name__)


def corrupting(folder: Path, *, num_blocks: int) -> dict[str, str]:
    """The environment in which `python -m decode_worker` is this worker and corrupts `num_blocks`
    blocks: a package of that name in `folder` goes before the product's, and has all of it but
    `__main__`."""
    package = folder / "decode_worker"
    package.mkdir()
    extended = "from pkgutil import extend_path\n\n__path__ = extend_path(__path__, __name__)\n"
    (package / "__init__.py").write_text(extended)
    (package / "__main__.py").write_text("from support.corrupting_worker import run\n\nrun()\n")
    path = python_path(folder, ROOT, ROOT / "tests")
    return {"PYTHONPATH": path, "PYTHONSAFEPATH": "1", NUM_BLOCKS: str(num_blocks)}


def run() -> None:
    """The product's own `__main__`, with bytes that change."""
    with tampered(corrupt_first(int(os.environ[NUM_BLOCKS]))):
        runpy.run_path(str(ROOT / "decode_worker" / "__main__.py"), run_name="__main__")


def corrupt_first(num_blocks: int) -> Tamper:
    """Flips a byte in each of the first `num_blocks` blocks."""
    left = num_blocks

    def tamper(block: memoryview) -> None:
        nonlocal left
        if left:
            left -= 1
            block[0] ^= 0xFF
            log.warning("block corrupted on purpose", extra={"left": left})

    return tamper
