from collections.abc import Iterable

from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.formats.contract import (
    CallArguments,
    CallEnd,
    CallStart,
    Content,
    OutputEvent,
    Reasoning,
)
from router.responses.transcript import ItemBegun, ItemChange, ItemEnded, ItemGrown, Transcript


def run(events: Iterable[OutputEvent], *, is_whole: bool = True) -> tuple[Transcript, list[str]]:
    """The transcript, and each change as a word."""
    transcript = Transcript("tok", as_summary=False)
    changes: list[ItemChange] = []
    words = []
    for event in events:
        changes += transcript.add(event)
    changes += transcript.end(is_whole=is_whole)
    for change in changes:
        match change:
            case ItemBegun(item):
                words.append(f"+{item.index:02}")
            case ItemGrown(item, text):
                words.append(f"{item.index:02}{text}")
            case ItemEnded(item):
                words.append(f"-{item.index:02}")
    return transcript, words


def call(index: int, *texts: str, whole: bool = True) -> list[OutputEvent]:
    end: list[OutputEvent] = [CallEnd(index=index)] if whole else []
    return [
        CallStart(index=index, id=f"call_{index}", name="f"),
        *(CallArguments(index=index, text=text) for text in texts),
        *end,
    ]


def test_what_was_thought_said_and_called_are_items_in_that_order() -> None:
    transcript, words = run([Reasoning("a"), Reasoning("b"), Content("c"), *call(0, "{", "}")])
    assert words == ["+00", "00a", "00b", "-00", "+01", "01c", "-01", "+02", "02{", "02}", "-02"]
    thought, said, called = transcript.shapes()
    assert thought["type"] == "reasoning" and thought["summary"] == []
    assert thought["content"] == [{"type": "reasoning_text", "text": "ab"}]
    assert said["content"][0]["text"] == "c"
    assert (called["call_id"], called["name"], called["arguments"]) == ("call_0", "f", "{}")
    assert {one["status"] for one in (thought, said, called)} == {"completed"}
    assert [one["id"] for one in (thought, said, called)] == ["rs_tok_0", "msg_tok_1", "fc_tok_2"]


def test_a_summary_has_the_thought_whole() -> None:
    transcript = Transcript("tok", as_summary=True)
    list(transcript.add(Reasoning("a")))
    list(transcript.end(is_whole=True))
    [shape] = transcript.shapes()
    assert shape["summary"] == [{"type": "summary_text", "text": "a"}] and shape["content"] == []


def test_only_what_was_open_when_an_output_was_cut_is_incomplete() -> None:
    transcript, _ = run([Content("a"), *call(0, "{}"), *call(1, "{", whole=False)], is_whole=False)
    assert [item.status for item in transcript.items] == ["completed", "completed", "incomplete"]


def test_a_call_that_never_became_whole_is_incomplete_whatever_ended_it() -> None:
    transcript, _ = run(call(0, "{", whole=False))
    assert [item.status for item in transcript.items] == ["incomplete"]


def test_an_answer_of_nothing_is_an_empty_message() -> None:
    transcript, words = run([])
    assert words == ["+00", "-00"]
    assert transcript.shapes()[0]["content"][0]["text"] == ""


TEXTS = st.text("ab", max_size=3)
SOME = st.tuples(st.sampled_from(["say", "think", "call", "cut"]), st.lists(TEXTS, max_size=3))


@settings(max_examples=60, deadline=None)
@given(st.lists(SOME, max_size=8), st.booleans())
def test_every_item_begins_once_grows_in_between_and_ends_once(
    groups: list[tuple[str, list[str]]], is_whole: bool
) -> None:
    events: list[OutputEvent] = []
    for index, (kind, texts) in enumerate(groups):
        match kind:
            case "say":
                events += map(Content, texts)
            case "think":
                events += map(Reasoning, texts)
            case _:
                events += call(index, *texts, whole=kind == "call")
    transcript, words = run(events, is_whole=is_whole)
    for item in transcript.items:
        number = f"{item.index:02}"
        mine = [word for word in words if number in word]
        assert mine[0] == f"+{number}" and mine[-1] == f"-{number}"
        assert "".join(word[2:] for word in mine[1:-1]) == item.text
    said = "".join(item.text for item in transcript.items if item.kind == "message")
    assert said == "".join(event.text for event in events if isinstance(event, Content))
