"""For a contract of import-linter, imports that break it.

Of each type the first pair of modules that no exception of the contract lets through is taken.
Modules may be named with import-linter's wildcards: `*` is one part of a name, `**` one or more.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations, permutations, product
from typing import Any

Contract = Mapping[str, Any]  # a table of pyproject.toml


@dataclass(frozen=True, slots=True, kw_only=True)
class Break:
    """An import that `importer`, a module of ours, must not have."""

    importer: str
    imported: str


def first_breaks(contract: Contract, modules: Collection[str]) -> tuple[Break, ...]:
    """The imports that together break the contract; none if no pair of modules can.

    ValueError for a type of contract that is not known here.
    """
    ignored = [_halves(one) for one in contract.get("ignore_imports", ())]
    for breaks in _candidates(contract, modules):
        if all(_is_possible(one, modules, ignored) for one in breaks):
            return breaks
    return ()


def _candidates(contract: Contract, modules: Collection[str]) -> Iterator[tuple[Break, ...]]:
    pairs: Iterator[tuple[str, str]]
    match contract["type"]:
        case "forbidden":
            sources = _named(contract["source_modules"], modules)
            pairs = product(sources, _named(contract["forbidden_modules"], modules))
        case "layers":
            pairs = _upward(contract, modules)
        case "independence":
            pairs = permutations(_named(contract["modules"], modules), 2)
        case "protected":
            pairs = _from_strangers(contract, modules)
        case "acyclic_siblings":
            yield from _circles(contract, modules)
            return
        case other:
            raise ValueError(f"contract type {other!r}: how it is broken is not written yet")
    for importer, imported in pairs:
        yield (Break(importer=importer, imported=imported),)


def _upward(contract: Contract, modules: Collection[str]) -> Iterator[tuple[str, str]]:
    """From each layer to each above it, of each container; layers may be left out of the house."""
    containers = _named(contract["containers"], modules) if "containers" in contract else [""]
    layers = [re.findall(r"[\w.]+", layer) for layer in contract["layers"]]
    for container, (higher, lower) in product(containers, combinations(layers, 2)):
        prefix = f"{container}." if container else ""
        present = [f"{prefix}{one}" for one in higher if f"{prefix}{one}" in modules]
        yield from product([f"{prefix}{one}" for one in lower], present)


def _from_strangers(contract: Contract, modules: Collection[str]) -> Iterator[tuple[str, str]]:
    allowed = _named(contract["allowed_importers"], modules)
    strangers = [one for one in modules if not any(_is_within(one, other) for other in allowed)]
    return product(strangers, _named(contract["protected_modules"], modules))


def _circles(contract: Contract, modules: Collection[str]) -> Iterator[tuple[Break, ...]]:
    """Two siblings that import each other."""
    for ancestor in _named(contract["ancestors"], modules):
        for one, other in combinations(sorted(_matches(f"{ancestor}.*", modules)), 2):
            yield Break(importer=one, imported=other), Break(importer=other, imported=one)


def _named(expressions: Collection[str], modules: Collection[str]) -> list[str]:
    """The modules that the expressions stand for; one without a wildcard stands for itself."""
    return [
        name
        for one in expressions
        for name in (sorted(_matches(one, modules)) if "*" in one else [one])
    ]


def _matches(expression: str, names: Collection[str]) -> list[str]:
    parts = {"**": r"\w+(\.\w+)*", "*": r"\w+"}
    pattern = r"\.".join(parts.get(part, re.escape(part)) for part in expression.split("."))
    return [name for name in names if re.fullmatch(pattern, name)]


def _is_possible(
    one: Break, modules: Collection[str], ignored: Collection[tuple[str, str]]
) -> bool:
    """It is between two modules apart, the first is ours, and no exception lets it through."""
    top = one.imported.split(".")[0]
    is_known = one.imported in modules or top not in {name.split(".")[0] for name in modules}
    is_apart = not (
        _is_within(one.importer, one.imported) or _is_within(one.imported, one.importer)
    )
    is_allowed = any(
        _matches(importer, [one.importer]) and _matches(imported, [one.imported])
        for importer, imported in ignored
    )
    return one.importer in modules and is_known and is_apart and not is_allowed


def _is_within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def _halves(expression: str) -> tuple[str, str]:
    importer, _, imported = expression.partition("->")
    return importer.strip(), imported.strip()
