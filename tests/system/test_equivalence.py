"""Disaggregated output equals colocated output, token for token, over HTTP and real processes.

Two clusters serve the same float32 checkpoint: one prefills and decodes in the same process, the
other always apart. A small token budget makes every longer prompt a chunked one there.

In bfloat16 the chunks of a prompt and the blocks taken from a cache change the last bit of its KV,
and with it now and then a token. So there two more clusters compute the same chunks from nothing;
then tokens and logprobs are the same to the bit.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.cluster import Cluster

from tools.make_checkpoint import END_ID

pytestmark = [pytest.mark.system, pytest.mark.slow]

BLOCK = 16
CONTEXT = 2048
OUTPUT = 24
CACHED = ("prefill_cached_tokens", "decode_cached_tokens")
LENGTHS = [1, BLOCK - 1, BLOCK, BLOCK + 1, 300, CONTEXT - OUTPUT]


@pytest.fixture(scope="module")
def colocated(small_checkpoint: Path) -> Iterator[Cluster]:
    with Cluster(checkpoint=small_checkpoint, prefill=0, decode=1) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def apart(small_checkpoint: Path) -> Iterator[Cluster]:
    flags = ["--local-prefill", "never", "--token-budget", "128"]
    with Cluster(checkpoint=small_checkpoint, prefill=1, decode=1, extra=flags) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def rounded(small_checkpoint: Path) -> Iterator[tuple[Cluster, Cluster]]:
    """Together and apart in bfloat16, in the same chunks."""
    flags = ["--threads", "1", "--local-prefill", "never"]
    with (
        Cluster(
            checkpoint=small_checkpoint, prefill=0, decode=1, dtype="bfloat16", extra=flags
        ) as together,
        Cluster(
            checkpoint=small_checkpoint, prefill=1, decode=1, dtype="bfloat16", extra=flags
        ) as apart,
    ):
        yield together, apart


def _prompt(length: int, *, seed: int) -> list[int]:
    return [1 + (seed * 7919 + i * i * 31 + i * 17) % 700 for i in range(length)]


def _complete(cluster: Cluster, prompt: list[int], **options: Any) -> tuple[dict[str, Any], str]:
    body = {
        "model": cluster.model,
        "prompt": prompt,
        "max_tokens": OUTPUT,
        "ignore_eos": True,
        "logprobs": 0,
        **options,
    }
    answer = httpx.post(f"{cluster.base_url}/v1/completions", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json(), answer.headers["x-baton-route"]


def _tokens(answer: dict[str, Any]) -> list[str]:
    tokens: list[str] = answer["choices"][0]["logprobs"]["tokens"]
    return tokens


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(
    "sampling", [{"temperature": 0}, {"temperature": 1.0, "top_p": 0.95, "seed": 11}]
)
def test_tokens_are_the_same_apart_and_together(
    colocated: Cluster, apart: Cluster, length: int, sampling: dict[str, Any]
) -> None:
    prompt = _prompt(length, seed=1)
    together, _ = _complete(colocated, prompt, **sampling)
    separated, route = _complete(apart, prompt, **sampling)
    assert "prefill-0" in route
    assert len(_tokens(separated)) == OUTPUT
    assert _tokens(separated) == _tokens(together)


def test_tokens_are_the_same_when_both_ends_hold_part_of_the_prompt(
    colocated: Cluster, apart: Cluster
) -> None:
    shared = _prompt(200, seed=2)
    for turn in range(3):
        prompt = shared + _prompt(40 * turn + 5, seed=30 + turn)
        together, _ = _complete(colocated, prompt, temperature=0)
        separated, _ = _complete(apart, prompt, temperature=0)
        assert _tokens(separated) == _tokens(together)
        if turn:
            assert separated["usage"]["prompt_tokens_details"]["cached_tokens"] >= 192


def test_penalties_and_bias_continue_across_the_hand_over(
    colocated: Cluster, apart: Cluster
) -> None:
    options = {
        "temperature": 0.8,
        "seed": 5,
        "presence_penalty": 0.7,
        "frequency_penalty": 0.4,
        "repetition_penalty": 1.2,
        "logit_bias": {"42": 3.0},
        "min_p": 0.02,
        "top_k": 40,
    }
    prompt = _prompt(77, seed=3)
    together, _ = _complete(colocated, prompt, **options)
    separated, _ = _complete(apart, prompt, **options)
    assert _tokens(separated) == _tokens(together)


def test_each_choice_is_the_same_apart_and_together(colocated: Cluster, apart: Cluster) -> None:
    options = {"n": 2, "temperature": 1.0, "seed": 21}
    together, _ = _complete(colocated, _prompt(50, seed=4), **options)
    separated, _ = _complete(apart, _prompt(50, seed=4), **options)
    first, second = separated["choices"]
    assert first["logprobs"]["tokens"] != second["logprobs"]["tokens"]
    assert separated["choices"] == _close_to(together["choices"])
    assert separated["usage"]["completion_tokens"] == 2 * OUTPUT


@pytest.mark.parametrize("least", [0, 1, 2, 9])
def test_min_tokens_counts_across_the_hand_over(
    colocated: Cluster, apart: Cluster, least: int
) -> None:
    """The end of text would be the next token at any time."""
    options = {
        "min_tokens": least,
        "ignore_eos": False,
        "logit_bias": {str(END_ID): 100},
        "seed": 2,
    }
    together, _ = _complete(colocated, _prompt(40, seed=5), **options)
    separated, _ = _complete(apart, _prompt(40, seed=5), **options)
    assert separated["choices"] == _close_to(together["choices"])
    assert separated["choices"][0]["finish_reason"] == "stop"
    assert separated["usage"]["completion_tokens"] == least + 1


@pytest.mark.parametrize("at", [0, 1, 15])
def test_a_stop_string_ends_both_at_the_same_character(
    colocated: Cluster, apart: Cluster, at: int
) -> None:
    """Inside the first token, which prefill samples; begun by it; and far behind it."""
    prompt = _prompt(35, seed=6)
    free, _ = _complete(colocated, prompt, temperature=0)
    text = free["choices"][0]["text"]
    stop = text[at : at + 3]
    together, _ = _complete(colocated, prompt, temperature=0, stop=[stop])
    separated, _ = _complete(apart, prompt, temperature=0, stop=[stop])
    assert separated["choices"] == _close_to(together["choices"])
    assert separated["choices"][0]["text"] == text[: text.index(stop)]
    assert separated["choices"][0]["finish_reason"] == "stop"


def test_logprobs_are_the_same_numbers_apart_and_together(
    colocated: Cluster, apart: Cluster
) -> None:
    options = {"temperature": 0.7, "seed": 8, "logprobs": 5}
    together, _ = _complete(colocated, _prompt(300, seed=7), **options)
    separated, _ = _complete(apart, _prompt(300, seed=7), **options)
    assert separated["choices"] == _close_to(together["choices"])
    for top in separated["choices"][0]["logprobs"]["top_logprobs"]:
        assert len(top) >= 5


@pytest.mark.parametrize(
    ("restarted", "holder", "seed"),
    [("prefill-0", "decode_cached_tokens", 9), ("decode-0", "prefill_cached_tokens", 10)],
)
def test_tokens_are_the_same_when_only_one_end_holds_the_prefix(
    colocated: Cluster, apart: Cluster, restarted: str, holder: str, seed: int
) -> None:
    shared = _prompt(160, seed=seed)
    _complete(apart, shared)
    epoch = apart.workers()[restarted]["epoch"]
    apart.kill(restarted)
    apart.wait_restarted(restarted, epoch=epoch, within_s=60)
    apart.wait_ready(*apart.names)
    prompt = shared + _prompt(21, seed=20)
    together, _ = _complete(colocated, prompt, temperature=0)
    separated, _ = _complete(apart, prompt, temperature=0)
    assert separated["choices"] == _close_to(together["choices"])
    trace = apart.get(f"/trace/{separated['id'].removeprefix('cmpl-')}").json()["traces"][0]
    cached = {name: n for name, n in trace["attempts"][-1].items() if name in CACHED}
    assert cached == {**dict.fromkeys(CACHED, 0), holder: 160}


@pytest.mark.parametrize("length", [1, BLOCK + 1, 300, 700])
@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 1.0, "seed": 11}])
def test_bfloat16_is_the_same_to_the_bit_when_the_chunks_are(
    rounded: tuple[Cluster, Cluster], length: int, sampling: dict[str, Any]
) -> None:
    prompt, salt = _prompt(length, seed=12), str(sampling)
    together, _ = _complete(rounded[0], prompt, cache_salt=salt, logprobs=3, **sampling)
    separated, route = _complete(rounded[1], prompt, cache_salt=salt, logprobs=3, **sampling)
    assert "prefill-0" in route
    assert separated["choices"] == together["choices"]


def _close_to(choices: list[dict[str, Any]]) -> list[Any]:
    """Equal in everything but the last digits of logprobs."""
    return [
        {
            **choice,
            "logprobs": {
                **choice["logprobs"],
                "token_logprobs": pytest.approx(choice["logprobs"]["token_logprobs"], abs=1e-3),
                "top_logprobs": [
                    pytest.approx(top, abs=1e-3) for top in choice["logprobs"]["top_logprobs"]
                ],
            },
        }
        for choice in choices
    ]


def _choices(cluster: Cluster, prompt: list[int], *, n: int) -> tuple[list[list[str]], list[Any]]:
    """Tokens of each choice, and what the router noted of its last attempt."""
    answer, _ = _complete(cluster, prompt, n=n, seed=40, temperature=1.0)
    tokens = [choice["logprobs"]["tokens"] for choice in answer["choices"]]
    name = answer["id"].removeprefix("cmpl-")
    traces = [cluster.get(f"/trace/{name}.{index}").json()["traces"][0] for index in range(n)]
    return tokens, [trace["attempts"][-1] for trace in traces]


def test_choices_are_what_single_requests_say_and_cost_one_prefill_and_one_fetch(
    apart: Cluster, colocated: Cluster
) -> None:
    prompt = _prompt(500, seed=77)
    choices, (first, *forks) = _choices(apart, prompt, n=4)
    assert (first["prefill"], first["prefill_cached_tokens"]) == ("prefill-0", 0)
    assert first["blocks_moved"] == 32
    for fork in forks:
        assert fork["prefill"] is None and fork["reason"].startswith("decode-0; forked from")
        assert fork["decode_cached_tokens"] == 499 and not fork["bytes_moved"]
    singles = [
        _tokens(_complete(colocated, prompt, seed=40 + index, temperature=1.0)[0])
        for index in range(4)
    ]
    assert choices == singles
    apart.wait_idle()


def test_where_decode_works_alone_a_prompt_of_choices_is_computed_once(colocated: Cluster) -> None:
    prompt = _prompt(500, seed=78)
    choices, (first, *forks) = _choices(colocated, prompt, n=4)
    assert [first["decode_cached_tokens"], *(one["decode_cached_tokens"] for one in forks)] == [
        0, 499, 499, 499,
    ]  # fmt: skip
    alone = _tokens(_complete(colocated, prompt, seed=42, temperature=1.0)[0])
    assert choices[2] == alone
    colocated.wait_idle()
