"""Plain manifests of the chart, for `kubectl apply`: `make manifests` writes deploy/manifests.

Each is the chart rendered by Helm's own code with the values of one file of charts/baton/ci.
"""

import re
import sys
from pathlib import Path

import helm_python as helm
import yaml

from tools.python_path import ROOT

FOLDER = ROOT / "deploy" / "manifests"
CHART = ROOT / "charts" / "baton"
VALUES = ("simulation",)
"""The files that are written, by the values they are of: on CPUs, with the model in the image."""
RELEASE = "baton"


def manifest(values: str) -> str:
    """All objects of one file of values but helm's own tests, in the order in which Helm applies
    them, for the namespace that kubectl is told."""
    told = yaml.safe_load((CHART / "ci" / f"{values}-values.yaml").read_text())
    texts = helm.Chart.load(str(CHART)).render(told, name=RELEASE, namespace="default")
    documents = [
        document.strip()
        for path, text in sorted(texts.items())
        if path.endswith(".yaml") and "/tests/" not in path
        for document in re.split(r"^---$", text, flags=re.MULTILINE)
        if document.strip()
    ]
    head = f"# Written by `make manifests`: charts/baton with ci/{values}-values.yaml.\n---\n"
    return head + "\n---\n".join(documents) + "\n"


def path_of(values: str) -> Path:
    return FOLDER / f"{values}.yaml"


def main() -> int:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for values in VALUES:
        path_of(values).write_text(manifest(values))
        print(path_of(values).relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
