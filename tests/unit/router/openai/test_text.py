"""What the tokeniser and the template will not take is the client's 400, on every path."""

from pathlib import Path
from typing import Any

import pytest
from support.api import HI, chat, complete, error_of, make_bench
from support.checkpoints import byte_level_tokenizer

pytestmark = pytest.mark.anyio
IMAGE = "<image_soft_token>"
WALK = (
    "{% macro kind(t) %}{% for one in t %}{{ kind(t) }}{% endfor %}{% endmacro %}"
    "{{ messages[0].content }}{% if types is defined %}{{ kind(types) }}{% endif %}"
)
THINKS = (
    "{% for m in messages %}{{ m.reasoning_content|default('-') }}:{{ m.content }};{% endfor %}"
    "{{ mood|default('calm') }}"
)
PARTS = "{% for m in messages %}{% for p in m.content %}[{{ p.text }}]{% endfor %}{% endfor %}"


async def test_tokens_beyond_the_models_are_refused_by_name_on_every_path(tmp_path: Path) -> None:
    bench = make_bench(tmp_path)
    raw = byte_level_tokenizer()
    raw.add_special_tokens([IMAGE])
    raw.save(str(tmp_path / "tokenizer.json"))
    tokenizer = type(bench.tokenizer).load(tmp_path)
    async with bench.client(tokenizer=tokenizer) as client:
        answers = {
            "prompt": await complete(client, prompt=f"see {IMAGE}"),
            "prompt[1]": await complete(client, prompt=["see", IMAGE]),
        }
        answers["prompt "] = await client.post("/tokenize", json={"prompt": IMAGE})
    for param, answer in answers.items():
        error = error_of(answer)
        assert (answer.status_code, error["param"]) == (400, param.strip())
        assert error["message"].startswith(f"{param.strip()}: the text has '{IMAGE}'")
    assert not bench.dispatcher.requests


async def test_a_text_that_fits_nowhere_is_told_as_such_on_every_path(tmp_path: Path) -> None:
    bench = make_bench(tmp_path)
    words = "word " * 1000
    messages = [{"role": "user", "content": words}]
    async with bench.client() as client:
        answers = [
            await chat(client, messages=messages),
            await complete(client, prompt=words),
            await client.post("/tokenize", json={"messages": messages}),
            await client.post("/tokenize", json={"prompt": words}),
        ]
    for answer in answers:
        assert (answer.status_code, error_of(answer)["code"]) == (400, "context_length_exceeded")


async def test_a_template_that_does_not_end_is_the_clients_mistake(tmp_path: Path) -> None:
    bench = make_bench(tmp_path, chat_template=WALK)
    async with bench.client() as client:
        assert (await chat(client)).status_code == 200
        refused = await chat(client, chat_template_kwargs={"types": ["integer", "null"]})
        assert (refused.status_code, error_of(refused)["param"]) == (400, "messages")
        assert "recursion" in error_of(refused)["message"]
        assert (await chat(client)).status_code == 200


async def rendered(path: Path, template: str, **fields: Any) -> str:
    """By `/tokenize`, what a worker would get."""
    bench = make_bench(path, chat_template=template)
    async with bench.client() as client:
        answer = await client.post("/tokenize", json={"messages": HI} | fields)
    assert answer.status_code == 200, answer.text
    return bench.tokenizer.decode(answer.json()["tokens"])


async def test_templates_get_variables_reasoning_and_parts(tmp_path: Path) -> None:
    kwargs = {"mood": "glad"}
    assert await rendered(tmp_path / "a", THINKS, chat_template_kwargs=kwargs) == "-:hi;glad"
    thought = {"role": "assistant", "content": "Yes", "reasoning_content": "why"}
    assert await rendered(tmp_path / "b", THINKS, messages=[thought]) == "why:Yes;calm"
    two = [{"type": "text", "text": text} for text in ("one", " two")]
    parts = [{"role": "user", "content": two}]
    assert await rendered(tmp_path / "c", PARTS, messages=parts) == "[one][ two]"
    assert await rendered(tmp_path / "d", PARTS) == "[hi]"
    assert await rendered(tmp_path / "e", THINKS, messages=parts) == "-:one\n two;calm"
