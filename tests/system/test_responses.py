"""A response of a real cluster that loses the worker which writes it."""

from pathlib import Path
from typing import Any

import pytest
from support.cluster import Cluster

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.long]
NAMES = [f"field_{number}" for number in range(20)]
SCHEMA = {
    "type": "object",
    "properties": {name: {"type": "string", "maxLength": 9} for name in NAMES},
    "required": NAMES,
    "additionalProperties": False,
}


def test_a_response_held_to_a_schema_goes_on_when_its_decode_worker_is_killed(
    slow_checkpoint: Path,
) -> None:
    wanted = {"type": "json_schema", "name": "fields", "schema": SCHEMA}
    asked: dict[str, Any] = {
        "model": slow_checkpoint.name,
        "input": "Fill in the form.",
        "text": {"format": wanted},
        "temperature": 0,
        "max_output_tokens": 300,
    }
    texts: list[str] = []
    with (
        Cluster(checkpoint=slow_checkpoint, decode=2, extra=["--local-prefill", "never"]) as up,
        up.openai() as sdk,
    ):
        alone = sdk.responses.create(**asked)
        headers = {"x-request-id": "cut"}
        with sdk.responses.stream(store=True, extra_headers=headers, **asked) as stream:
            for event in stream:
                if event.type == "response.output_text.delta":
                    texts.append(event.delta)
                    if len(texts) == 10:
                        up.kill(up.placed("cut")["decode"])
                elif event.type in ("response.completed", "response.incomplete"):
                    final = event.response
        assert len(up.get("/trace/cut").json()["traces"][0]["attempts"]) == 2
        assert sdk.responses.retrieve(final.id).output_text == "".join(texts)
    assert "".join(texts) == final.output_text == alone.output_text
    assert '"field_0"' in alone.output_text
