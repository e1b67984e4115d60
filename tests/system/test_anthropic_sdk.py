"""The anthropic SDK, unmodified, against real processes: every prompt is handed over."""

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from anthropic import Anthropic
from support.cluster import TINY, Cluster

pytestmark = [pytest.mark.system, pytest.mark.slow]
MODEL = TINY.name
FACTS = "The code of the lantern is 405. The home of Mira is Rome. "
HOME: Any = [{"role": "user", "content": FACTS + "What is the home of Mira?"}]
GREEDY: Any = {"model": MODEL, "max_tokens": 40, "extra_body": {"temperature": 0}}


@pytest.fixture(scope="module")
def cluster(apart_cluster: Cluster) -> Cluster:
    return apart_cluster


@pytest.fixture(scope="module")
def sdk(cluster: Cluster) -> Iterator[Anthropic]:
    with Anthropic(base_url=cluster.base_url, api_key="none", timeout=60) as client:
        yield client


def text_of(message: anthropic.types.Message) -> str:
    (block,) = message.content
    assert block.type == "text"
    return block.text


def test_a_message_is_answered_counted_and_streamed_alike(sdk: Anthropic) -> None:
    whole = sdk.messages.create(messages=HOME, **GREEDY)
    assert "Rome" in text_of(whole)
    assert whole.stop_reason == "end_turn"
    counted = sdk.messages.count_tokens(model=MODEL, messages=HOME)
    with sdk.messages.stream(messages=HOME, **GREEDY) as stream:
        pieces = list(stream.text_stream)
        final = stream.get_final_message()
    assert "".join(pieces) == text_of(final) == text_of(whole)
    assert len(pieces) > 2
    usage, again = whole.usage, final.usage
    assert usage.input_tokens + (usage.cache_read_input_tokens or 0) == counted.input_tokens
    assert again.input_tokens + (again.cache_read_input_tokens or 0) == counted.input_tokens
    assert (again.cache_read_input_tokens or 0) > 0
    assert again.output_tokens == usage.output_tokens


def test_a_stop_sequence_and_a_begun_answer(sdk: Anthropic) -> None:
    said = text_of(sdk.messages.create(messages=HOME, **GREEDY))
    stop = said[said.index(" ", 6) :][:4]
    cut = sdk.messages.create(messages=HOME, stop_sequences=["never said", stop], **GREEDY)
    assert (cut.stop_reason, cut.stop_sequence) == ("stop_sequence", stop)
    begun = [*HOME, {"role": "assistant", "content": text_of(cut)}]
    assert text_of(cut) + text_of(sdk.messages.create(messages=begun, **GREEDY)) == said


def test_a_window_that_is_full_ends_the_answer(sdk: Anthropic) -> None:
    prompt: Any = [{"role": "user", "content": "word " * 1900}]
    endless = {"temperature": 0, "ignore_eos": True}
    answer = sdk.messages.create(
        model=MODEL,
        max_tokens=9999,
        messages=prompt,
        extra_body=endless,
    )
    assert answer.stop_reason == "model_context_window_exceeded"
    with pytest.raises(anthropic.BadRequestError, match=r"prompt is too long: .*\d+ tokens > \d+"):
        sdk.messages.create(messages=prompt * 3, **GREEDY)


def test_an_answer_may_be_held_to_a_schema(sdk: Anthropic) -> None:
    wanted: Any = {"format": {"type": "json_schema", "schema": _strings("home", "code")}}
    answer = sdk.messages.create(
        messages=HOME, output_config=wanted, **GREEDY | {"max_tokens": 400}
    )
    assert set(json.loads(text_of(answer))) == {"home", "code"}
    wanted["format"]["schema"]["uniqueItems"] = True
    with pytest.raises(anthropic.BadRequestError, match="uniqueItems"):
        sdk.messages.create(messages=HOME, output_config=wanted, **GREEDY)


def _strings(*names: str) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {name: {"type": "string", "maxLength": 9} for name in names},
        "required": list(names),
        "additionalProperties": False,
    }
