"""What one output must be a text of: its grammar, from its first token or from where it begins."""

from collections.abc import Sequence
from dataclasses import dataclass

from protocol.formats.bound import BoundFormat
from protocol.formats.contract import NamedTool, Tool, ToolChoice
from protocol.formats.grammar import CallGrammar
from protocol.formats.lark import Rules, pattern_of
from protocol.formats.table import CONTENT, REASONING, START, Written
from protocol.formats.think import ThinkTags
from protocol.messages import Grammar
from protocol.text.tokenizer import Tokenizer

GAP = '("\\n" | "\\n\\n")?'
"""What models write after their thoughts."""
PLAIN = Written(call="")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What is asked of an output."""

    tools: Sequence[Tool]
    """That it may call."""
    choice: ToolChoice
    parallel: bool
    answer_grammar: str | None

    @property
    def must_call(self) -> bool:
        return bool(self.tools) and self.choice not in ("auto", "none")

    @property
    def is_held(self) -> bool:
        """Any text will not do."""
        held = not self.parallel or any(tool.strict for tool in self.tools)
        return self.must_call or self.answer_grammar is not None or (bool(self.tools) and held)


@dataclass(frozen=True, slots=True, kw_only=True)
class Beginning:
    """Where an output begins, as its prompt has left it."""

    state: str
    has_thought: bool
    """The prompt has closed what was opened for thoughts, perhaps without any."""


def output_grammar(
    bound: BoundFormat,
    wish: Wish,
    beginning: Beginning,
    *,
    thinking: ThinkTags | None,
    tokenizer: Tokenizer,
) -> Grammar | None:
    """None: any text will do. Raises ValueError for tools of which none can be made."""
    if not wish.is_held:
        return None
    rules = Rules(bound, ends=tokenizer.eos_token_ids)
    written = bound.format.written or PLAIN
    body = _body(bound, wish, written, rules)
    in_thought = beginning.state == REASONING
    after: tuple[tuple[int, ...], ...] = ()
    if bound.format.headers and beginning.state == CONTENT:
        lead = ""
    elif bound.format.headers:
        messages = " | ".join(_message(one, rules) for one in written.lead)
        lead = f"({messages})*"
        if in_thought:
            after = _runs("<|end|>", tokenizer)
            lead = f"{rules.literal('<|start|>assistant')} {lead}"
    elif thinking is None or beginning.has_thought:
        lead = ""
    elif in_thought:
        lead, after = GAP, _runs(thinking.close, tokenizer)
    else:
        thought = _message(f"{thinking.open}{{text}}{thinking.close}", rules)
        lead = f"({thought} {GAP})?"
    return Grammar(text=rules.whole(f"{lead} {body}"), begins_after=after)


def _body(bound: BoundFormat, wish: Wish, written: Written, rules: Rules) -> str:
    answer = None if wish.answer_grammar is None else rules.nested(wish.answer_grammar)
    if not wish.tools:
        return _message(written.answer, rules, answer)
    named = wish.choice.name if isinstance(wish.choice, NamedTool) else None
    tools = [tool for tool in wish.tools if named in (None, tool.name)]
    several = wish.parallel and named is None and not bound.format.headers
    grammar = CallGrammar(bound, written, rules)

    def calls(after: str = "") -> str:
        return grammar.calls(tools, several=several, only_strict=not wish.must_call, after=after)

    if wish.must_call:
        return calls()
    if answer is not None or written.answer != "{text}":
        return rules.add(f"{_message(written.answer, rules, answer)} | {calls()}")
    opening = written.begin or written.call
    first = next((text for text in bound.terminals[START].texts if opening.startswith(text)), "")
    if first:  # such a call is all there is
        other = rules.terminal(f"/\\s*([^\\s{pattern_of(first[0])}](?s:.*))?/")
        return rules.add(f"({other})? | {calls()}")
    before = rules.before_token(opening)
    if before == "":
        return f"{rules.any_until('')} ({calls()})?"
    if before is None:
        before = next(text for text in bound.terminals[CONTENT].texts if opening.startswith(text))
        other = rules.terminal(f"/(?s:.*)/ & ~/(?s:.*){pattern_of(before)}(?s:.*)/")
        return rules.add(f"({other})? | {rules.any_until(before)} {calls(before)}")
    text = rules.terminal(f"/(?s:.*){pattern_of(before)}/")
    return rules.add(f"{rules.any_until('')} | {text} {calls(before)}")


def _message(template: str, rules: Rules, inner: str | None = None) -> str:
    """What matches it, with any text, or `inner`, at `{text}`."""
    before, _, after = template.partition("{text}")
    text = rules.any_until(after) if inner is None else f"{inner} {rules.literal(after)}"
    return f"{rules.literal(before)} {text}"


def _runs(text: str, tokenizer: Tokenizer) -> tuple[tuple[int, ...], ...]:
    """The tokens that write it, alone or run together with line breaks."""
    if (token_id := tokenizer.added_tokens.get(text)) is not None:
        return ((token_id,),)
    texts = [before + text + after for before in ("", "\n") for after in ("", "\n", "\n\n")]
    runs = (tuple(tokenizer.encode(one, add_special_tokens=False)) for one in texts)
    return tuple(dict.fromkeys(runs))
