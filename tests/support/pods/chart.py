"""The chart's manifests as objects, by Helm's own code."""

from typing import Any

import helm_python as helm
import yaml
from support.pods.image import ROOT
from support.pods.volumes import Object


def rendered(release: str = "demo", **values: Any) -> list[Object]:
    """In no order: what they are applied in does not matter. Without hooks, such as the test."""
    chart = helm.Chart.load(str(ROOT / "charts" / "baton"))
    texts = chart.render(values, name=release, namespace="default")
    return [
        thing
        for path, text in texts.items()
        if path.endswith(".yaml")
        for thing in yaml.safe_load_all(text)
        if thing and "helm.sh/hook" not in thing["metadata"].get("annotations", {})
    ]
