"""What the references of a JSON Schema name: places of the same document, and no others."""

from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

MAX_STEP = 60
Path = tuple[Any, str] | None
"""Of a place in a document: that of what it is in, and the step from there, such as `.properties`
or `[0]`; None: the document. As text it would take the square of a hostile document's size."""
Place = tuple[Any, Path]


def written(path: Path) -> str:
    """`properties.a.anyOf[0]`; long names are cut."""
    steps = []
    while path is not None:
        path, step = path
        steps.append(step if len(step) <= MAX_STEP else f"{step[:MAX_STEP]}...")
    return "".join(reversed(steps)).removeprefix(".")


class References:
    """Of one document."""

    def __init__(self, root: dict[str, Any]) -> None:
        self._root = root
        self._named: dict[str, Place] = {}
        self._has_resources = False
        for node, path in _objects(root):
            if isinstance(anchor := node.get("$anchor"), str):
                self._named[f"#{anchor}"] = node, path
            if isinstance(name := node.get("$id"), str):
                self._named[name.removesuffix("#")] = node, path
                self._has_resources |= node is not root and not name.startswith("#")

    def find(self, reference: str) -> Place:
        """Raises ValueError with the rule that it breaks."""
        resource, _, fragment = reference.partition("#")
        if reference in self._named:
            return self._named[reference]
        if not fragment and resource in self._named:
            return self._named[resource]
        if resource and self._named.get(resource, (None, None))[0] is not self._root:
            raise ValueError("names no schema within this one; others are not fetched")
        if self._has_resources and fragment:
            raise ValueError("a pointer beside an inner $id may name two places")
        if fragment and not fragment.startswith("/"):
            raise ValueError("no schema has that $anchor")
        return self._follow(unquote(fragment))

    def _follow(self, pointer: str) -> Place:
        """RFC 6901."""
        node: Any = self._root
        path: Path = None
        for piece in pointer.split("/")[1:]:
            key = piece.replace("~1", "/").replace("~0", "~")
            if isinstance(node, dict) and key in node:
                node, path = node[key], (path, f".{key}")
            elif isinstance(node, list) and key.isdecimal() and int(key) < len(node):
                node, path = node[int(key)], (path, f"[{key}]")
            else:
                raise ValueError("names a place that the schema does not have")
        return node, path


def _objects(root: dict[str, Any]) -> Iterator[tuple[dict[str, Any], Path]]:
    left: list[Place] = [(root, None)]
    while left:
        value, path = left.pop()
        if isinstance(value, dict):
            yield value, path
            left.extend((inner, (path, f".{key}")) for key, inner in value.items())
        elif isinstance(value, list):
            left.extend((inner, (path, f"[{index}]")) for index, inner in enumerate(value))
