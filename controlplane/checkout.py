"""Where this source tree is, and the model in it.

The shipped model is part of the checkout, not of the wheel: installed elsewhere, `baton up` needs
`--model`.
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def shipped_model() -> Path:
    return ROOT / "models" / "tiny"
