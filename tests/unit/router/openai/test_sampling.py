"""What a request leaves to the checkpoint, and which sampling values reach a worker."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.api import Bench, chat, complete, error_of, make_bench

from protocol.text.sampling_defaults import SamplingDefaults

pytestmark = pytest.mark.anyio
PUBLISHED = SamplingDefaults(
    temperature=0.6, top_p=0.95, top_k=20, min_p=0.1, repetition_penalty=1.1, max_tokens=30
)


def of_checkpoint(path: Path, defaults: SamplingDefaults) -> Bench:
    bench = make_bench(path)
    bench.models.texts[0] = replace(bench.models.texts[0], sampling_defaults=defaults)
    return bench


async def test_fields_not_sent_are_the_checkpoints(tmp_path: Path) -> None:
    bench = of_checkpoint(tmp_path, PUBLISHED)
    async with bench.client() as client:
        await chat(client, seed=1)
        await chat(client, seed=1, temperature=None, top_k=None)
        sent = {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.1}
        await chat(client, seed=1, repetition_penalty=1.1, max_tokens=30, **sent)
    ours = [request.sampling for request in bench.dispatcher.requests]
    assert ours[0] == ours[1] == ours[2]


async def test_fields_that_are_sent_win_over_the_checkpoints(tmp_path: Path) -> None:
    bench = of_checkpoint(tmp_path, PUBLISHED)
    sent = {"temperature": 0, "top_p": 1, "top_k": -1, "min_p": 0, "repetition_penalty": 1}
    async with bench.client() as client:
        await chat(client, max_tokens=200, **sent)
    (sampling,) = [request.sampling for request in bench.dispatcher.requests]
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0, 1, 0, 0)
    assert (sampling.repetition_penalty, sampling.max_tokens) == (1, 200)


async def test_the_checkpoints_output_length_is_cut_by_the_context(tmp_path: Path) -> None:
    bench = of_checkpoint(tmp_path, replace(PUBLISHED, max_tokens=100_000))
    async with bench.client() as client:
        assert (await chat(client)).status_code == 200
    (request,) = bench.dispatcher.requests
    assert len(request.token_ids) + request.sampling.max_tokens == 256


async def test_completions_keep_openais_output_length(tmp_path: Path) -> None:
    bench = of_checkpoint(tmp_path, PUBLISHED)
    async with bench.client() as client:
        await complete(client)
    assert bench.dispatcher.requests[0].sampling.max_tokens == 16


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("repetition_penalty", 1e-38),
        ("repetition_penalty", 0.0099),
        ("repetition_penalty", 10.1),
        ("top_p", 1e-300),
        ("top_p", 0),
        ("temperature", -1e-9),
        ("temperature", 2.1),
        ("min_p", 1.1),
        ("presence_penalty", 1e308),
        ("frequency_penalty", -2.01),
        ("logit_bias", {"7": 1e308}),
        ("logit_bias", {"7": -101}),
        ("top_k", 2**31),
        ("seed", 2**63),
    ],
)
async def test_values_no_score_survives_are_refused_with_their_range(
    bench: Bench, client: httpx.AsyncClient, field: str, value: Any
) -> None:
    response = await chat(client, **{field: value})
    assert (response.status_code, error_of(response)["param"]) == (400, field)
    assert any(sign in error_of(response)["message"] for sign in ("<=", ">=", "<", ">"))
    assert bench.dispatcher.requests == []


@pytest.mark.parametrize(
    ("sent", "counts"),
    [
        ({"temperature": 1e-300}, {"temperature": 1e-300}),  # to the engine as good as 0
        ({"temperature": -0.0}, {"temperature": 0.0}),
        ({"repetition_penalty": 0.01}, {"repetition_penalty": 0.01}),
        ({"repetition_penalty": 10}, {"repetition_penalty": 10.0}),
        ({"top_p": 1e-6}, {"top_p": 1e-6}),
        ({"top_k": -1}, {"top_k": 0}),
        ({"logit_bias": {"7": 100, "3": -100.0}}, {"logit_bias": ((3, -100.0), (7, 100.0))}),
        ({"seed": -(2**63)}, {"seed": 0}),
    ],
)
async def test_values_at_the_edges_reach_the_worker(
    bench: Bench, client: httpx.AsyncClient, sent: dict[str, Any], counts: dict[str, Any]
) -> None:
    assert (await chat(client, **sent)).status_code == 200
    sampling = bench.dispatcher.requests[0].sampling
    assert {name: getattr(sampling, name) for name in counts} == counts
