"""One word, one thing: no class name twice, and a verb with its object."""

import ast
from collections import defaultdict
from collections.abc import Iterator, Sequence

from support.source_tree import (
    Function,
    Module,
    definitions,
    imported_names,
    parsed,
    product_modules,
)

BARE_VERBS = {"take", "handle", "process", "do", "perform", "apply"}
TWICE: dict[str, str] = {}
"""Class names that the product may have more than once -> why."""
BARE: dict[str, str] = {}
"""Dotted names within their module that may be a bare verb -> why."""
SENDING = ("kvtransfer.transports.", "protocol.channel.", "kvtransfer.device.")
"""Where the sockets are, and a device's collectives."""
SENDS = {
    "router.http.exchange.Exchange.send": "the ASGI server's word, to the client's socket",
    "router.wire.cycle.Cycle.send": "the ASGI server's word, to the client's socket",
    "router.workers.worker.WorkerConnection.send_now": "what a router needs of the channel's link",
    "controlplane.doctor.peer._PeerConnection.send": "a socket between two doctors",
    "kvtransfer.native.flows.send": "C that writes to sockets",
    "kvtransfer.source.sinks.Sinks.send": "on the control connection",
    "kvtransfer.sink.link.Link.send": "on the control connection",
}
"""Full names elsewhere that may say `send` -> why."""
ALIASES = {
    "numpy as np": "the field's",
    "torch.nn.functional as F": "the field's",
    "triton.language as tl": "the field's",
    "ucxx._lib.libucxx as api": "the only module of it that is used, deep inside",
    "collections.abc.Sequence as Seq": "a Sequence of the engine's is a request's",
    "pydantic_settings.SettingsError as SourceError": "ours has that name",
    **{
        f"kvtransfer.transports.{name}.plane as {name}": "one `plane` each"
        for name in ("cuda_ipc", "nccl", "shm", "tcp", "ucx")
    },
}
"""Imports that give a name of their own -> why."""


def test_no_class_name_stands_for_two_things() -> None:
    repeated = repeated_classes(product_modules())
    found = [f"{name}: {', '.join(repeated[name])}" for name in repeated.keys() - TWICE.keys()]
    assert not found, "\n".join(sorted(found))


def test_every_exception_for_a_class_name_is_needed() -> None:
    assert TWICE.keys() - repeated_classes(product_modules()).keys() == set()


def test_no_public_name_is_a_verb_that_hides_its_object() -> None:
    found = [
        place for one in product_modules() for name, place in bare_verbs(one) if name not in BARE
    ]
    assert not found, "\n".join(found)


def test_every_exception_for_a_verb_is_needed() -> None:
    found = {name for module in product_modules() for name, _ in bare_verbs(module)}
    assert BARE.keys() - found == set()


def test_what_sends_does_so_on_a_socket() -> None:
    found = [
        name for one in product_modules() for name in sends(one)
        if not name.startswith(SENDING) and name not in SENDS
    ]  # fmt: skip
    assert not found, "\n".join(found)


def test_every_exception_for_sending_is_needed() -> None:
    assert SENDS.keys() - {name for one in product_modules() for name in sends(one)} == set()


def test_what_is_imported_keeps_its_name() -> None:
    found = [
        f"{one.path}: {alias}"
        for one in product_modules()
        for alias in aliases(one)
        if alias not in ALIASES
    ]
    assert not found, "\n".join(found)


def test_every_exception_for_an_alias_is_needed() -> None:
    assert ALIASES.keys() - {alias for one in product_modules() for alias in aliases(one)} == set()


def test_sends_are_found_by_their_first_word() -> None:
    module = parsed(
        "engine/a.py",
        "def send_all(): ...\nclass A:\n  def send(self): ...\n  def sender(self): ...",
    )
    assert list(sends(module)) == ["engine.a.send_all", "engine.a.A.send"]


def test_an_alias_is_found_wherever_it_is_imported() -> None:
    text = "import a.b as b\nimport c\ndef f():\n  from d import e as g, h"
    assert list(aliases(parsed("engine/a.py", text))) == ["a.b as b", "d.e as g"]


def test_a_class_inside_another_counts_as_a_repetition() -> None:
    one = parsed("engine/a.py", "class Move: ...")
    other = parsed("router/b.py", "class Stage:\n    class Move(Protocol): ...")
    assert repeated_classes([one, other]) == {"Move": ["engine/a.py:1", "router/b.py:2"]}


def test_members_of_closed_unions_may_share_a_name() -> None:
    one = parsed("engine/a.py", "class End: ...\nclass Go: ...\nWord = Go | End")
    other = parsed("router/b.py", "class End: ...")
    assert repeated_classes([one, other]) == {}


def test_a_union_in_another_module_makes_its_members_closed() -> None:
    one = parsed("engine/a.py", "class End: ...")
    union = parsed(
        "engine/c.py", "import engine.a\nfrom engine.a import End as E\nX = Union[E, int]"
    )
    other = parsed("router/b.py", "class End: ...")
    assert repeated_classes([one, union, other]) == {}
    assert repeated_classes([one, other]) != {}


def test_a_bare_verb_is_found_in_classes_and_not_in_functions() -> None:
    module = parsed(
        "engine/a.py", "class A:\n  def take(self):\n    def apply(): ...\n  def _do(self): ..."
    )
    assert list(bare_verbs(module)) == [("A.take", "engine/a.py:2: A.take")]


def test_a_property_is_no_verb() -> None:
    module = parsed("engine/a.py", "class A:\n    @property\n    def handle(self) -> int: ...")
    assert list(bare_verbs(module)) == []


def repeated_classes(modules: Sequence[Module]) -> dict[str, list[str]]:
    """Class name -> its places, if they are two or more; members of closed unions left out."""
    closed = {member for module in modules for member in _union_members(module)}
    places = defaultdict(list)
    for module in modules:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ClassDef) and f"{module.name}.{node.name}" not in closed:
                places[node.name].append(f"{module.path}:{node.lineno}")
    return {name: found for name, found in sorted(places.items()) if len(found) > 1}


def bare_verbs(module: Module) -> Iterator[tuple[str, str]]:
    """Dotted name and place of each function and method that is a verb alone.

    A property is a noun, whatever its word.
    """
    for name, node in definitions(module.tree):
        if isinstance(node, Function) and node.name in BARE_VERBS and not _is_property(node):
            yield name, f"{module.path}:{node.lineno}: {name}"


def sends(module: Module) -> Iterator[str]:
    """Full name of each function and method whose first word is `send`."""
    for name, node in definitions(module.tree):
        if isinstance(node, Function) and node.name.split("_")[0] == "send":
            yield f"{module.name}.{name}"


def aliases(module: Module) -> Iterator[str]:
    """What each import calls otherwise: `dotted as alias`."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            origin = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            yield from (f"{origin}{one.name} as {one.asname}" for one in node.names if one.asname)


def _is_property(node: Function) -> bool:
    return any(isinstance(one, ast.Name) and one.id == "property" for one in node.decorator_list)


def _union_members(module: Module) -> Iterator[str]:
    """Dotted names of all that the module-level unions of this module list."""
    bound = imported_names(module)
    for node in module.tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            members = [_dotted(one, module.name, bound) for one in _alternatives(node.value)]
            yield from members if len(members) > 1 else ()


def _alternatives(value: ast.expr) -> list[ast.expr]:
    match value:
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return [*_alternatives(left), *_alternatives(right)]
        case ast.Subscript(value=ast.Name(id="Union"), slice=ast.Tuple(elts=members)):
            return members
        case _:
            return [value]


def _dotted(node: ast.expr, module: str, bound: dict[str, str]) -> str:
    match node:
        case ast.Name(id=name):
            return bound.get(name, f"{module}.{name}")
        case ast.Attribute(value=value, attr=name):
            return f"{_dotted(value, module, bound)}.{name}"
        case _:
            return ""  # None, a subscript: no class of ours
