"""What a run has to show, and whether it does."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

CHUNKS, REQUESTS = "CPU s a million chunks: ", "CPU s a thousand requests: "
ITL, BURST, ALONE = "ITL p99 ms: ", "burst TTFT p50 ms: ", "alone ms: "
TOKENISING = "burst's tokenising CPU ms"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    what: str
    figure: float
    most: float

    @property
    def is_met(self) -> bool:
        return self.figure <= self.most

    def shape(self) -> dict[str, object]:
        return {
            "what": self.what, "figure": round(self.figure, 3), "most": round(self.most, 3),
            "met": self.is_met,
        }  # fmt: skip

    def __str__(self) -> str:
        sign = "met   " if self.is_met else "MISSED"
        return f"{sign} {self.what}: {self.figure:.3f}, at most {self.most:.3f}"


def verdicts(results: Mapping[str, float]) -> list[Bar]:
    """Of what was measured; a bar beside a peer that did not run is left out."""
    return [*_beside_peers(results), *_by_itself(results)]


def _beside_peers(results: Mapping[str, float]) -> Iterator[Bar]:
    for name, figure in results.items():
        peer = name.replace("baton", "sglang-router")
        if name.startswith(f"{CHUNKS}baton") and peer in results:
            what = f"{name.removeprefix(CHUNKS)}: CPU a chunk over sglang-router's"
            yield Bar(what=what, figure=figure / results[peer], most=0.7)
    if f"{REQUESTS}dynamo" in results:
        ratio = results[f"{REQUESTS}baton"] / results[f"{REQUESTS}dynamo"]
        yield Bar(what="CPU a request over Dynamo's frontend's", figure=ratio, most=0.9)


def _by_itself(results: Mapping[str, float]) -> Iterator[Bar]:
    for name, figure in results.items():
        if name.startswith(f"{ITL}baton"):
            yield Bar(what=name, figure=figure, most=25.0)
    parts = results[f"{BURST}direct"] + results[TOKENISING] / 2
    what = "burst TTFT p50 over a direct arrival and half the burst's tokenising"
    yield Bar(what=what, figure=results[f"{BURST}baton"] / parts, most=1.3)
    added = results[f"{ALONE}baton"] - results[f"{ALONE}direct"]
    yield Bar(
        what="ms that one request alone waits longer than without a router", figure=added, most=2.0
    )
