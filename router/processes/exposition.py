"""The metrics of several processes in one exposition, told apart by a label.

Not their sum: a sum falls when one process is killed, which Prometheus takes for a restart of all
of it, and counts everything again. Of series apart, that of the killed one alone begins anew.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping

from prometheus_client import Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

LABEL = "process"


def merged(expositions: Mapping[int, bytes], *, own: int, shared: Collection[str]) -> bytes:
    """One exposition of those of the processes by number. Metrics named in `shared` say the same in
    each process: they are those of `own`, without the label."""
    families: dict[str, Metric] = {}
    for process, exposition in sorted(expositions.items()):
        for family in text_string_to_metric_families(exposition.decode()):
            if family.name in shared and process != own:
                continue
            label = {} if family.name in shared else {LABEL: str(process)}
            of_all = families.setdefault(
                family.name, Metric(family.name, family.documentation, family.type)
            )
            for sample in family.samples:
                of_all.samples.append(sample._replace(labels={**sample.labels, **label}))
    return generate_latest(_Collected(families.values()))


class _Collected(Collector):
    """As `generate_latest` wants it."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families
