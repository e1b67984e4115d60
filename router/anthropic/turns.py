"""Messages of content blocks as the turns that templates are shown."""

from collections.abc import Iterator, Sequence
from typing import assert_never

from router.anthropic.content import (
    AnyBlock,
    InputMessage,
    RedactedThinkingBlock,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
)
from router.api.errors import bad_field
from router.openai.turns import Call, Role, Turn, call_arguments


def turns_of(messages: Sequence[InputMessage], system: tuple[str, ...]) -> tuple[Turn, ...]:
    """Messages of one role that follow each other are one turn, but for the results of tools, each
    a turn of its own. Raises ApiError 400 for a result that belongs to no call, and for a block
    that its role may not have."""
    turns = [Turn(path="system", role="system", content=_content(system))] if system else []
    calls: dict[str, str] = {}
    for index, message in enumerate(messages):
        for turn in _turns_of_message(message, f"messages[{index}]", calls):
            if turns and turns[-1].role == turn.role and turn.role in ("user", "assistant"):
                turn = _joined(turns.pop(), turn)
            turns.append(turn)
    return tuple(turns)


def _turns_of_message(message: InputMessage, path: str, calls: dict[str, str]) -> Iterator[Turn]:
    if isinstance(message.content, str):
        yield Turn(path=path, role=message.role, content=message.content)
        return
    said = _Said(message.role, path)
    for index, block in enumerate(message.content):
        where = f"{path}.content[{index}]"
        if isinstance(block, ToolResultBlock):
            if not said.is_empty:
                yield said.turn()
                said = _Said(message.role, path)
            yield _result(block, message.role, where, calls)
        else:
            said.add(block, where)
            if isinstance(block, ToolUseBlock):
                calls[block.id] = block.name
    if not said.is_empty or not message.content:
        yield said.turn()


class _Said:
    """What a message's blocks come to, in so far as they are one turn."""

    def __init__(self, role: Role, path: str) -> None:
        self._role = role
        self._path = path
        self._texts: list[str] = []
        self._thoughts: list[str] = []
        self._calls: list[Call] = []
        self.is_empty = True

    def add(self, block: AnyBlock, path: str) -> None:
        self.is_empty = False
        if not isinstance(block, TextBlock) and self._role != "assistant":
            raise bad_field(f"{path}.type", "only of an assistant's message")
        match block:
            case TextBlock():
                self._texts.append(block.text)
            case ThinkingBlock():
                self._thoughts.append(block.thinking)
            case RedactedThinkingBlock():
                pass
            case ToolUseBlock():
                arguments = call_arguments(block.input)
                self._calls.append(Call(id=block.id, name=block.name, arguments=arguments))
            case ToolResultBlock():
                raise AssertionError("results are turns of their own")
            case _:
                assert_never(block)

    def turn(self) -> Turn:
        return Turn(
            path=self._path,
            role=self._role,
            content=None if self._calls and not self._texts else _content(tuple(self._texts)),
            reasoning="\n".join(self._thoughts) or None,
            calls=tuple(self._calls),
        )


def _result(block: ToolResultBlock, role: Role, path: str, calls: dict[str, str]) -> Turn:
    if role != "user":
        raise bad_field(f"{path}.type", "only of a user's message")
    if block.tool_use_id not in calls:
        raise bad_field(f"{path}.tool_use_id", "no tool_use before it has this id")
    return Turn(
        path=path,
        role="tool",
        content=_content(block.texts),
        name=calls[block.tool_use_id],
        call_id=block.tool_use_id,
    )


def _joined(first: Turn, second: Turn) -> Turn:
    texts = tuple(text for turn in (first, second) for text in turn.texts if text)
    calls = first.calls + second.calls
    thoughts = [turn.reasoning for turn in (first, second) if turn.reasoning]
    return Turn(
        path=first.path,
        role=first.role,
        content=None if calls and not texts else _content(texts),
        reasoning="\n".join(thoughts) or None,
        calls=calls,
    )


def _content(texts: tuple[str, ...]) -> str | tuple[str, ...]:
    return texts if len(texts) > 1 else "".join(texts)
