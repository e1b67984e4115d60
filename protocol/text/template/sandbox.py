"""The jinja2 environment chat templates run in: transformers' own, with a meter on it.

No single operation may make more text than fits, and all of them together neither more text nor
more processor time than a stated multiple. What a template was given is not counted.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import jinja2.utils
from jinja2 import nodes, pass_context
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from protocol.text.template.meter import Meter, growth, listed


class Environment(ImmutableSandboxedEnvironment):
    """Compiles and renders within `metered` only."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[GenerationTag, loopcontrols],
            finalize=self._made,
        )
        self._local = threading.local()
        for name, function in self.filters.items():
            self.add_filter(name, function)
        self.filters |= {"_made": self._made, "_concat": self._concat, "_step": _take_step}
        self.globals["namespace"] = Namespace
        del self.globals["lipsum"]

    @property
    def meter(self) -> Meter:
        meter: Meter = self._local.meter
        return meter

    @contextmanager
    def metered(self, max_chars: int) -> Iterator[Meter]:
        self._local.meter = Meter(max_chars)
        try:
            yield self.meter
        finally:
            del self._local.meter

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = Instrument().visit(super()._parse(source, name, filename))
        tree.set_environment(self)
        return tree

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        meter = __self.meter
        meter.step()
        text = getattr(__obj, "__self__", None)
        if isinstance(text, str | bytes | int) and (args or kwargs):
            args = tuple(map(listed, args)) if __obj.__name__ == "join" else args
            meter.may_make(growth(meter, __obj.__name__, text, *args, *kwargs.values()))
        return meter.made(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        meter = self.meter
        match operator, left, right:
            case "*", str() | bytes() | list() | tuple(), int():
                meter.may_make(len(left) * right)
            case "*", int(), str() | bytes() | list() | tuple():
                meter.may_make(left * len(right))
            case "*", int(), int():
                meter.may_count(left.bit_length() + right.bit_length())
            case "**", int(), int():
                meter.may_count(left.bit_length() * right)
            case "%", str() | bytes(), _:
                meter.may_make(growth(meter, "format", left, right))
            case _:
                pass
        return meter.made(super().call_binop(context, operator, left, right))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def format_metered(*args: Any, **kwargs: Any) -> str:
            given = (*args, *kwargs.values())
            self.meter.may_make(growth(self.meter, "format", value.__self__, *given))
            return wrapped(*args, **kwargs)

        return format_metered

    def add_filter(self, name: str, function: Callable[..., Any]) -> None:
        self.filters[name] = self._metered_filter(name, function)

    def _metered_filter(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        skips = 1 if hasattr(function, "jinja_pass_arg") else 0

        @wraps(function)
        def metered(*args: Any, **kwargs: Any) -> Any:
            meter = self.meter
            if len(args) > skips + 1 or kwargs:
                if name == "join":
                    args = (*args[:skips], listed(args[skips]), *args[skips + 1 :])
                meter.may_make(growth(meter, name, *args[skips:], *kwargs.values()))
            return meter.made(function(*args, **kwargs))

        return metered

    def _made(self, value: Any) -> Any:
        return self.meter.made(value)

    def _concat(self, values: list[Any]) -> str:
        texts = [str(value) for value in values]
        self.meter.may_make(sum(map(len, texts)))
        return str(self.meter.made("".join(texts)))


@pass_context  # so that it is no constant
def _take_step(context: Context, value: Any, num_chars: int) -> Any:
    environment = context.environment
    assert isinstance(environment, Environment)
    environment.meter.step(num_chars)
    return value


class Namespace(jinja2.utils.Namespace):
    """Namespaces may hold each other, so they are not written out."""

    def __repr__(self) -> str:
        return "<Namespace>"


class GenerationTag(Extension):
    """`{% generation %}`: transformers uses it to mark what a model said; we only render it."""

    tags = {"generation"}  # noqa: RUF012  (jinja2 declares it as an instance attribute)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Instrument(NodeTransformer):
    """Puts the meter where jinja2 itself has no hook: loops, macros, literals and `~`."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.body = [_charge(node), *node.body]
        if node.test is not None:
            node.test = nodes.And(_step(nodes.Const(True), 0), node.test, lineno=node.lineno)
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        self.generic_visit(node)
        node.body = [_charge(node), *node.body]
        return node

    visit_CallBlock = visit_Macro

    def visit_AssignBlock(self, node: nodes.AssignBlock) -> nodes.Node:
        self.generic_visit(node)
        node.filter = _filter(node.filter, "_made", node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filter(nodes.List(node.nodes, lineno=node.lineno), "_concat", node.lineno)

    def visit_List(self, node: nodes.Expr) -> nodes.Node:
        self.generic_visit(node)
        if getattr(node, "ctx", "load") != "load" or not any(node.find_all(nodes.Name)):
            return node
        return _filter(node, "_made", node.lineno)

    visit_Tuple = visit_Dict = visit_List


def _filter(node: nodes.Expr | None, name: str, lineno: int, *args: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(node, name, list(args), [], None, None, lineno=lineno)


def _step(value: nodes.Expr, num_chars: int) -> nodes.Filter:
    return _filter(value, "_step", 1, nodes.Const(num_chars))


def _charge(node: nodes.Node) -> nodes.ExprStmt:
    num_chars = sum(len(text.data) for text in node.find_all(nodes.TemplateData))
    return nodes.ExprStmt(_step(nodes.Const(None), num_chars), lineno=node.lineno)
