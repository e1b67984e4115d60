"""What models answer alone, where nothing is changed: the oracle of releases that are changed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from support.cluster import Cluster
from support.pods.load import Told, ask, client_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """As a release serves it."""

    folder: Path
    served: str
    """Its name in the API, whatever the folder's is."""
    dtype: str = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class Alone:
    """The answers of one model in a process of its own."""

    version: str
    """NAME@REVISION, as `x-baton-model` has it."""
    texts: dict[str, str]
    """By prompt."""


Oracle = dict[tuple[str, str], set[str]]
"""By version and prompt: what may be answered."""


async def answers_alone(model: Model, prompts: Sequence[str], *, max_tokens: int) -> Alone:
    """Nothing else may need this event loop meanwhile."""
    cluster = Cluster(checkpoint=model.folder, prefill=0, decode=1, dtype=model.dtype)
    with cluster:
        async with client_of(cluster.base_url) as client:
            told = [
                await ask(client, cluster.model, prompt, max_tokens=max_tokens)
                for prompt in prompts
            ]
    assert not any(one.failure for one in told), told
    (revision,) = {one.served.rpartition("@")[2] for one in told}
    texts = {one.prompt: one.text for one in told}
    return Alone(version=f"{model.served}@{revision}", texts=texts)


def oracle_of(found: Sequence[Alone]) -> Oracle:
    """One version may have several: of other dtypes."""
    allowed: Oracle = {}
    for one in found:
        for prompt, text in one.texts.items():
            allowed.setdefault((one.version, prompt), set()).add(text)
    return allowed


def strangers(told: Sequence[Told], allowed: Oracle) -> list[Told]:
    """Whole answers that are not what the version that they name answers alone."""
    return [
        one
        for one in told
        if not one.failure and one.text not in allowed.get((one.served, one.prompt), set())
    ]
