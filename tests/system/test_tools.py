"""A tool that must be called, by real processes: random weights, held to the call by its grammar.

The stream is read as the openai SDK reads it, also across the death of the worker that writes it.
"""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from anthropic import Anthropic
from support.cluster import Cluster

from tools.make_checkpoint import CHAT_TEMPLATE

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.long]

TEMPLATE = "{% if tools %}{{ tools | tojson }} by <tool_call>{% endif %}" + CHAT_TEMPLATE
DAYS = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}}
PARAMETERS = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Rome", "Ulm"]},
        "days": DAYS | {"minItems": 40, "maxItems": 40},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": PARAMETERS}}
ASKED: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Weather?"}],
    "tools": [TOOL],
    "tool_choice": "required",
    "parallel_tool_calls": False,
    "max_tokens": 400,
    "temperature": 1,
    "seed": 5,
}


@pytest.fixture(scope="module")
def cluster(slow_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    path = tmp_path_factory.mktemp("tools") / "caller"
    shutil.copytree(slow_checkpoint, path)
    config = json.loads((path / "tokenizer_config.json").read_text())
    (path / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": TEMPLATE}))
    with Cluster(checkpoint=path, decode=2, extra=["--local-prefill", "never"]) as up:
        yield up


def asked(
    cluster: Cluster, *, request: str, kill_after: int | None = None
) -> tuple[str, str, str | None]:
    """A streamed call's name, arguments and finish reason; its decode worker is killed after so
    many pieces."""
    name, pieces, reason = "", [], None
    with cluster.openai() as sdk:
        raw = sdk.chat.completions.with_raw_response.create(
            model=cluster.model, stream=True, extra_headers={"x-request-id": request}, **ASKED
        )
        worker = re.search(r"decode-\d", raw.headers["x-baton-route"])
        for chunk in raw.parse():
            (choice,) = chunk.choices
            for call in choice.delta.tool_calls or ():
                assert call.function is not None
                name += call.function.name or ""
                pieces.append(call.function.arguments or "")
                if len(pieces) == kill_after:
                    assert worker is not None
                    cluster.kill(worker[0])
            assert not choice.delta.content
            reason = choice.finish_reason or reason
    return name, "".join(pieces), reason


def test_a_call_is_what_its_schema_says_from_a_cached_prompt_too(cluster: Cluster) -> None:
    name, arguments, reason = asked(cluster, request="whole")
    assert (name, reason) == ("get_weather", "tool_calls")
    read = json.loads(arguments)
    assert read["city"] in ("Rome", "Ulm") and len(read["days"]) == 40
    with cluster.openai() as sdk:
        whole = sdk.chat.completions.create(model=cluster.model, **ASKED)
    calls = whole.choices[0].message.tool_calls
    assert calls is not None and len(calls) == 1 and calls[0].type == "function"
    assert calls[0].function.arguments == arguments
    assert whole.usage is not None and whole.usage.prompt_tokens_details is not None
    assert whole.usage.prompt_tokens_details.cached_tokens


def test_a_call_goes_on_with_the_same_arguments_when_its_worker_dies(cluster: Cluster) -> None:
    undisturbed = asked(cluster, request="undisturbed")
    assert asked(cluster, request="disturbed", kill_after=30) == undisturbed
    (trace,) = cluster.get("/trace/disturbed").json()["traces"]
    assert len(trace["attempts"]) == 2
    cluster.wait_ready(*cluster.names)


def test_anthropics_sdk_reads_the_same_call_across_the_death_of_its_worker(
    cluster: Cluster,
) -> None:
    fields: Any = {
        "model": cluster.model,
        "messages": ASKED["messages"],
        "tools": [{"name": "get_weather", "input_schema": PARAMETERS}],
        "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
        "max_tokens": 400,
        "extra_body": {"temperature": 1, "seed": 5},
        "extra_headers": {"x-request-id": "message"},
    }
    _, arguments, _ = asked(cluster, request="chat")
    num_deltas = 0
    with (
        Anthropic(base_url=cluster.base_url, api_key="none", timeout=60) as sdk,
        sdk.messages.stream(**fields) as stream,
    ):
        for event in stream:
            num_deltas += event.type == "content_block_delta"
            if num_deltas == 30 and event.type == "content_block_delta":
                cluster.kill(cluster.placed("message")["decode"])
        message = stream.get_final_message()
    (trace,) = cluster.get("/trace/message").json()["traces"]
    assert len(trace["attempts"]) == 2
    (use,) = (block.to_dict() for block in message.content)
    assert (use["type"], use["input"]) == ("tool_use", json.loads(arguments))
    assert message.stop_reason == "tool_use"
    cluster.wait_ready(*cluster.names)
