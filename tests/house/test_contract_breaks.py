"""Imports that break a contract are found for every type of contract that import-linter has."""

import pytest
from support.contract_breaks import Break, Contract, first_breaks

MODULES = [
    *("engine", "engine.kv", "engine.kv.pool", "engine.step"),
    *("router", "router.app", "protocol"),
]
FORBIDDEN = {"type": "forbidden", "source_modules": ["engine"], "forbidden_modules": ["torch"]}


def pairs(contract: Contract) -> list[tuple[str, str]]:
    return [(one.importer, one.imported) for one in first_breaks(contract, MODULES)]


def test_a_source_imports_what_is_forbidden() -> None:
    assert pairs(FORBIDDEN) == [("engine", "torch")]


def test_a_wildcard_stands_for_the_modules_it_matches() -> None:
    assert pairs(FORBIDDEN | {"source_modules": ["engine.*"]}) == [("engine.kv", "torch")]
    assert pairs(FORBIDDEN | {"source_modules": ["*.kv.**"]}) == [("engine.kv.pool", "torch")]


def test_an_import_that_is_excepted_breaks_nothing() -> None:
    excepted = {"ignore_imports": ["engine -> torch"]}
    assert pairs(FORBIDDEN | excepted) == []
    assert pairs(FORBIDDEN | excepted | {"forbidden_modules": ["torch", "zmq"]}) == [
        ("engine", "zmq")
    ]


def test_a_source_that_is_not_there_breaks_nothing() -> None:
    assert pairs(FORBIDDEN | {"source_modules": ["engine.gone"]}) == []


def test_a_package_and_its_own_module_are_not_apart() -> None:
    contract = {"forbidden_modules": ["engine.kv", "router"]}
    assert pairs(FORBIDDEN | contract) == [("engine", "router")]


def test_a_lower_layer_imports_a_higher_one() -> None:
    layers = ["(gone) | router", "engine : protocol"]
    assert pairs({"type": "layers", "layers": layers}) == [("engine", "router")]


def test_layers_are_those_of_their_container() -> None:
    contract = {"type": "layers", "layers": ["step", "kv"], "containers": ["engine"]}
    assert pairs(contract) == [("engine.kv", "engine.step")]


def test_one_of_the_independent_imports_another() -> None:
    contract = {"type": "independence", "modules": ["engine.kv", "engine.step"]}
    assert pairs(contract) == [("engine.kv", "engine.step")]


def test_a_stranger_imports_what_is_protected() -> None:
    contract = {
        "type": "protected",
        "protected_modules": ["engine.kv"],
        "allowed_importers": ["engine"],
    }
    assert pairs(contract) == [("router", "engine.kv")]


def test_two_siblings_import_each_other() -> None:
    contract = {"type": "acyclic_siblings", "ancestors": ["engine"]}
    assert first_breaks(contract, MODULES) == (
        Break(importer="engine.kv", imported="engine.step"),
        Break(importer="engine.step", imported="engine.kv"),
    )


def test_a_type_that_is_not_known_is_refused() -> None:
    with pytest.raises(ValueError, match="'strange'"):
        first_breaks({"type": "strange"}, MODULES)
