"""The house keeps its limits: `make tree` prints what is measured here."""

from support.source_tree import ROOT

from tools.tree import excesses, measure


def test_the_house_keeps_its_limits() -> None:
    found = excesses(measure(ROOT))
    assert not found, "\n".join(found)
