"""The formats of one checkpoint, bound to its tokens: an output opened, with what it needs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from protocol.formats.contract import OutputParser, Tool, ToolChoice
from protocol.formats.families.think import PLAIN, PROMPT, ThinkTags, with_thinking, without_calls
from protocol.formats.grammars.output_grammar import Beginning, Wish, output_grammar
from protocol.formats.reading.bound import BoundFormat, bind
from protocol.formats.reading.parser import FormatParser
from protocol.formats.table import REASONING, OutputFormat
from protocol.messages import Grammar
from protocol.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """How one request's outputs are held to a format and read."""

    marks: tuple[int, ...]
    """For `Sampling.marks`."""
    new_parser: Callable[[], OutputParser] | None
    """Of each choice. None: all of an output is content."""
    grammar: Grammar | None


class Formats:
    """Thread-safe."""

    def __init__(
        self, tokenizer: Tokenizer, *, tools: OutputFormat | None, thinking: ThinkTags | None
    ) -> None:
        self._tokenizer = tokenizer
        self.thinking = thinking
        self.tools = tools
        plain = PLAIN if tools is None else without_calls(tools)
        self._without_tools = self._bind(plain)
        self._in_prompt = self._without_tools if plain.headers else self._bind(PROMPT)
        self._with_tools = self._without_tools if tools is None else self._bind(tools)

    @property
    def tool_format(self) -> str:
        """Its name; "none" when calls are not read."""
        return "none" if self.tools is None else self.tools.name

    @property
    def reasoning_format(self) -> str:
        if self.tools is not None and self.tools.headers:
            return self.tools.name
        return "none" if self.thinking is None else self.thinking.name

    def open(
        self,
        *,
        tools: Sequence[Tool] = (),
        choice: ToolChoice = "auto",
        parallel: bool = True,
        prompt_ids: Sequence[int],
        answer_grammar: str | None = None,
    ) -> Output:
        """Of a request with this prompt. `answer_grammar`: of the content, as llguidance reads it.
        Raises ToolError for a tool whose calls cannot be held to what it asks for, ValueError for
        any where `self.tools` is None."""
        uses_tools = bool(tools) and choice != "none"
        if uses_tools and self.tools is None:
            raise ValueError("how this model calls tools is not known")
        bound = self._with_tools if uses_tools else self._without_tools
        beginning = self._beginning(bound.format, prompt_ids)
        wish = Wish(
            tools=tools if uses_tools else (),
            choice=choice,
            parallel=parallel,
            answer_grammar=answer_grammar,
        )
        grammar = output_grammar(
            bound, wish, beginning, thinking=self.thinking, tokenizer=self._tokenizer
        )

        def new_parser() -> OutputParser:
            return FormatParser(bound, tools, state=beginning.state)

        return Output(
            marks=tuple(bound.marks),
            new_parser=new_parser if bound.format.rows else None,
            grammar=grammar,
        )

    def _bind(self, of: OutputFormat) -> BoundFormat:
        tags = self.thinking
        of = of if tags is None else with_thinking(of, tags, self._tokenizer.added_tokens)
        return bind(of, self._tokenizer)

    def _beginning(self, of: OutputFormat, prompt_ids: Sequence[int]) -> Beginning:
        """As its prompt leaves an answer in this format."""
        marks = self._in_prompt.marks
        parser = FormatParser(self._in_prompt, (), state=of.initial)
        close = "" if self.thinking is None else self.thinking.close
        has_thought = False
        for token_id in self._last_message(prompt_ids):
            before, mark = parser.state, marks.get(token_id)
            parser.feed(token_id, "" if mark else self._tokenizer.token_text(token_id))
            is_close = mark is not None and mark.literal == close
            has_thought = has_thought or is_close or (before == REASONING != parser.state)
        is_known = parser.state == REASONING or bool(of.headers)
        state = parser.state if is_known else of.initial
        return Beginning(state=state, has_thought=has_thought and state != REASONING)

    def _last_message(self, prompt_ids: Sequence[int]) -> Sequence[int]:
        """The tokens after the last that neither text nor tags consist of."""
        bound = self._in_prompt
        restart = self._tokenizer.added_tokens.get(bound.format.restarts)
        for at in range(len(prompt_ids) - 1, -1, -1):
            token_id = prompt_ids[at]
            is_other = self._tokenizer.is_special(token_id) and token_id not in bound.marks
            if token_id == restart or is_other:
                return prompt_ids[at + 1 :]
        return prompt_ids
