"""What one output must be a text of: its grammar, from its first token or from where it begins."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from protocol.formats.contract import NamedTool, Tool, ToolChoice
from protocol.formats.families.think import ThinkTags
from protocol.formats.grammars.call_grammar import CallGrammar
from protocol.formats.grammars.lark import Rules, pattern_of
from protocol.formats.reading.bound import BoundFormat
from protocol.formats.table import CONTENT, REASONING, START, OutputFormat, Written
from protocol.messages import Grammar
from protocol.text.tokenizer import Tokenizer

GAP = '("\\n" | "\\n\\n")?'
"""What models write after their thoughts."""
PLAIN = Written(call="")
MAX_MESSAGES = 8
"""Of thoughts and remarks before a call, where they are messages."""


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
    """None: any text will do. Raises ToolError for a tool of which none can be made."""
    if not wish.is_held:
        return None
    rules = Rules(bound, ends=tokenizer.eos_token_ids)
    written = bound.format.written or PLAIN
    body = _body(bound, wish, written, rules)
    lead, end_of_thought = _lead(bound.format, written, beginning, thinking, rules)
    after = _runs(end_of_thought, tokenizer) if beginning.state == REASONING else ()
    return Grammar(text=rules.whole(f"{lead} {body}"), begins_after=after)


def _lead(
    of: OutputFormat,
    written: Written,
    beginning: Beginning,
    thinking: ThinkTags | None,
    rules: Rules,
) -> tuple[str, str]:
    """What may come before, and what ends thoughts that the prompt has begun."""
    in_thought = beginning.state == REASONING
    if of.headers:
        if beginning.state == CONTENT:
            return "", ""
        messages = " | ".join(_message(one, rules) for one in written.lead)
        begin = rules.literal("<|start|>assistant") if in_thought else ""
        return f"{begin} ({messages}){{0,{MAX_MESSAGES}}}", "<|end|>"
    if thinking is None or beginning.has_thought:
        return "", ""
    if in_thought:
        return GAP, thinking.close
    thought = _message(f"{thinking.open}{{text}}{thinking.close}", rules)
    return f"({thought} {GAP})?", ""


def _body(bound: BoundFormat, wish: Wish, written: Written, rules: Rules) -> str:
    answer = None if wish.answer_grammar is None else rules.nested(wish.answer_grammar)
    if not wish.tools:
        return _message(written.answer, rules, answer)
    named = wish.choice.name if isinstance(wish.choice, NamedTool) else None
    tools = [tool for tool in wish.tools if named in (None, tool.name)]
    several = wish.parallel and named is None and not bound.format.headers
    grammar = CallGrammar(bound, written, rules)

    def calls(after: str) -> str:
        return grammar.calls(tools, several=several, only_strict=not wish.must_call, after=after)

    if wish.must_call:
        return calls("")
    if answer is not None or written.answer != "{text}":
        return rules.add(f"{_message(written.answer, rules, answer)} | {calls('')}")
    return _text_and_calls(bound, written.begin or written.call, rules, calls)


def _text_and_calls(
    bound: BoundFormat, opening: str, rules: Rules, calls: Callable[[str], str]
) -> str:
    """Any text, and perhaps calls, which begin with `opening`, after it."""
    any_text = rules.any_until("")
    before = rules.before_token(opening)
    if before == "":
        return f"{any_text} ({calls('')})?"
    if before is not None:  # the token shows where the text ends, of which this much is the call's
        text = rules.terminal(f"/(?s:.*){pattern_of(before)}/")
        return rules.add(f"{any_text} | {text} {calls(before)}")
    starts = bound.terminals[START].texts
    if first := next((text for text in starts if opening.startswith(text)), ""):
        other = rules.terminal(f"/\\s*([^\\s{pattern_of(first[0])}](?s:.*))?/")
        return rules.add(f"({other})? | {calls('')}")
    texts = bound.terminals[CONTENT].texts
    first = next(text for text in texts if opening.startswith(text))
    other = rules.terminal(f"/(?s:.*)/ & ~/(?s:.*){pattern_of(first)}(?s:.*)/")
    return rules.add(f"({other})? | {rules.any_until(first)} {calls(first)}")


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
