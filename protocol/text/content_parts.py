"""Whether a chat template reads a message's content as a list of parts: a look at its source.

A judgement about programs, so it can err: then parts are shown as one text, or the reverse.
"""

from enum import Enum

from jinja2 import nodes

ABOUT_TEXT = frozenset({"string", "iterable", "mapping", "sequence"})
"""Tests by which a template tells a text from parts."""


class PartsUse(Enum):
    NONE = "none"
    """It expects a text."""
    EITHER = "either"
    ONLY = "only"
    """It walks over parts and never asks whether there is a text instead."""


def parts_use(template: nodes.Template) -> PartsUse:
    names = _content_names(template)
    loops = template.find_all(nodes.For)
    if not any(_is_content(loop.iter, names) for loop in loops):
        return PartsUse.NONE
    asks = any(test.name in ABOUT_TEXT for test in template.find_all(nodes.Test))
    return PartsUse.EITHER if asks else PartsUse.ONLY


def _content_names(template: nodes.Template) -> set[str]:
    """Variables and macro arguments that hold a message's content."""
    names: set[str] = set()
    macros = {macro.name: macro for macro in template.find_all(nodes.Macro)}
    while True:
        before = len(names)
        for assign in template.find_all(nodes.Assign):
            if isinstance(assign.target, nodes.Name) and _is_content(assign.node, names):
                names.add(assign.target.name)
        for call in template.find_all(nodes.Call):
            macro = macros.get(call.node.name) if isinstance(call.node, nodes.Name) else None
            if macro is not None:
                pairs = zip(macro.args, call.args, strict=False)
                names |= {to.name for to, given in pairs if _is_content(given, names)}
                names |= {to.key for to in call.kwargs if _is_content(to.value, names)}
        if len(names) == before:
            return names


def _is_content(node: nodes.Node, names: set[str]) -> bool:
    """`message.content`, `message['content']`, or a variable that holds it, filtered or chosen."""
    match node:
        case nodes.Getattr(attr="content"):
            return True
        case nodes.Getitem(arg=nodes.Const(value="content")):
            return True
        case nodes.Call(node=nodes.Getattr(attr="get"), args=[nodes.Const(value="content"), *_]):
            return True
        case nodes.Name(name=name):
            return name in names
        case nodes.Filter(node=inner) if inner is not None:
            return node.name != "string" and _is_content(inner, names)
        case nodes.CondExpr(expr1=one, expr2=other):
            return any(_is_content(side, names) for side in (one, other) if side is not None)
        case nodes.Or(left=left, right=right):
            return _is_content(left, names) or _is_content(right, names)
        case _:
            return False
