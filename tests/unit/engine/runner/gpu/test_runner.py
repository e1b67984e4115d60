"""The path of a step on a device, over the host's stand-in: padding, feedback, late tokens."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from support.device_steps import (
    EOS,
    GREEDY,
    LIMITS,
    PROMPTS,
    SEEDED,
    TABLES,
    ahead,
    all_with,
    decodes,
    expected,
    prefills,
    stepwise,
)  # fmt: skip
from support.family_shapes import SHAPES
from support.forwards import chunk, pool_for
from support.host_device import HostDevice
from torch import Tensor

from engine.batch import SampledToken, SequenceId
from engine.checkpoint.load import load_model
from engine.kvcache.pool import KvPool
from engine.models.model import Model
from engine.runner.gpu.graphs import DecodeGraphs
from engine.runner.gpu.runner import DeviceRunner
from engine.sampling.rows import sample_on_host
from protocol.messages import Sampling
from tools.make_checkpoint import Shape, make_checkpoint

GIB = 1 << 30
NUM_STEPS = 6


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    path = tmp_path_factory.mktemp("model")
    make_checkpoint(path, Shape(family="qwen3"))
    return load_model(path, dtype="float32", native=False)


def device_runner(
    model: Model, *, graphs: bool = True, depth: int = 2, pool: KvPool | None = None
) -> DeviceRunner:
    runner = DeviceRunner(
        model, pool or pool_for(model), device=HostDevice(depth=depth), sampler=sample_on_host,
        limits=LIMITS, eos_token_ids=EOS,
    )  # fmt: skip
    if graphs:
        runner.capture(limit_bytes=GIB)
    return runner


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("rule", [GREEDY, SEEDED])
def test_steps_launched_ahead_give_the_tokens_of_steps_one_by_one(
    model: Model, rule: Sampling, graphs: bool
) -> None:
    tokens = ahead(device_runner(model, graphs=graphs), all_with(rule), count=9)
    assert tokens == expected(model, all_with(rule), count=9)
    assert len({token.token_id for token in tokens[SequenceId("a")]}) > 3


@pytest.mark.parametrize("graphs", [True, False])
def test_a_dynamic_rope_turns_by_whole_prompts_and_own_places(tmp_path: Path, graphs: bool) -> None:
    """Of the prompts two are within the original length, which their answers leave."""
    make_checkpoint(tmp_path, Shape(context=8, rope={"rope_type": "dynamic", "factor": 8.0}))
    model = load_model(tmp_path, dtype="float32", native=False)
    tokens = ahead(device_runner(model, graphs=graphs), all_with(SEEDED), count=9)
    assert tokens == expected(model, all_with(SEEDED), count=9)


def test_a_batch_is_filled_up_to_the_next_captured_size(model: Model) -> None:
    runner = device_runner(model)
    assert runner.captured_sizes == (1, 2, 4, 6)
    few = {SequenceId("a"): GREEDY, SequenceId("b"): SEEDED, SequenceId("c"): GREEDY}
    for count in (1, 2, 3):
        rules = dict(list(few.items())[:count])
        assert stepwise(device_runner(model), rules, count=4) == expected(model, rules, count=4)


def test_a_step_beyond_the_captured_scratch_is_launched_kernel_by_kernel(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Contexts that are in more splits than there is room for; nothing else changes."""

    def never(graphs: DecodeGraphs, step: object) -> Tensor:
        raise AssertionError("its scratch has no room")

    monkeypatch.setattr("engine.ops.work.SPLIT_TOKENS", 4)
    monkeypatch.setattr("engine.ops.work.MOST_SLOTS", 1)
    monkeypatch.setattr(DecodeGraphs, "run", never)
    rules = {SequenceId("a"): GREEDY}
    assert stepwise(device_runner(model), rules, count=4) == expected(model, rules, count=4)


def test_rows_that_fill_a_batch_up_write_no_kv(model: Model) -> None:
    pool = pool_for(model, fill=7.0)
    runner = DeviceRunner(
        model, pool, device=HostDevice(), sampler=sample_on_host, limits=LIMITS
    )  # fmt: skip
    runner.capture(limit_bytes=GIB)
    assert (pool.tensor == 7.0).all()
    rules = all_with(GREEDY)
    runner.launch(prefills(rules)).tokens()
    before = pool.tensor.clone()
    runner.launch(decodes(rules, {s: [SampledToken(token_id=9)] for s in rules}, pending=0))
    changed = (pool.tensor != before).flatten(1).any(1).nonzero().flatten().tolist()
    assert changed == [TABLES[s][len(prompt) // 8] for s, prompt in PROMPTS.items()]


def test_prefills_beside_a_pending_decode_change_nothing(model: Model) -> None:
    a, b = SequenceId("a"), SequenceId("b")
    want = expected(model, {a: SEEDED, b: GREEDY}, count=2)
    runner = device_runner(model)
    first = runner.launch(prefills({a: SEEDED}))
    mixed = decodes({a: SEEDED}, {a: []}, pending=1) + prefills({b: GREEDY})
    second = runner.launch(mixed)
    third = runner.launch(decodes({b: GREEDY}, {b: []}, pending=1))
    assert first.tokens() == {a: (want[a][0],)}
    assert second.tokens() == {a: (want[a][1],), b: (want[b][0],)}
    assert third.tokens() == {b: (want[b][1],)}


@pytest.mark.parametrize(
    "rule",
    [
        replaced
        for base in (GREEDY, SEEDED)
        for replaced in (
            Sampling(
                seed=base.seed, max_tokens=9, temperature=base.temperature, num_logprobs=number,
                repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.3,
                logit_bias=((44, 2.5), (7, -1.0)),
            )
            for number in (None, 3)
        )
    ],
)  # fmt: skip
def test_penalties_bias_and_logprobs_are_those_of_the_sampler(model: Model, rule: Sampling) -> None:
    rules = {SequenceId("a"): rule, SequenceId("b"): GREEDY, SequenceId("c"): rule}
    want = expected(model, rules, count=5)
    tokens = stepwise(device_runner(model), rules, count=5)
    for s in rules:
        assert [t.token_id for t in tokens[s]] == [t.token_id for t in want[s]]
        for mine, theirs in zip(tokens[s], want[s], strict=True):
            assert [i for i, _ in mine.top] == [i for i, _ in theirs.top]
            assert [p for _, p in mine.top] == pytest.approx([p for _, p in theirs.top], abs=1e-4)
            assert mine.logprob == pytest.approx(theirs.logprob, abs=1e-4)


def test_min_tokens_counts_the_tokens_that_nobody_has_read(model: Model) -> None:
    free = Sampling(seed=0, max_tokens=9, temperature=0.0, logit_bias=((2, 100.0),))
    rule = Sampling(seed=0, max_tokens=9, temperature=0.0, logit_bias=((2, 100.0),), min_tokens=3)
    a = SequenceId("a")
    assert [t.token_id for t in ahead(device_runner(model), {a: free}, count=2)[a]] == [2, 2]
    ids = [t.token_id for t in ahead(device_runner(model), {a: rule}, count=5)[a]]
    assert 2 not in ids[:3] and ids[3:] == [2, 2]


def test_a_ban_that_leaves_nothing_is_lifted(model: Model) -> None:
    everything = tuple(range(model.config.vocab_size))
    rule = Sampling(
        seed=0, max_tokens=9, temperature=0.0, min_tokens=5, stop_token_ids=everything
    )  # fmt: skip
    a = SequenceId("a")
    assert stepwise(device_runner(model), {a: rule}, count=2) == expected(model, {a: rule}, count=2)


@pytest.mark.parametrize("rule", [GREEDY, SEEDED])
def test_a_row_without_a_number_has_no_token_and_the_others_theirs(
    model: Model, rule: Sampling
) -> None:
    pool, rules = pool_for(model, fill=0), all_with(rule)
    runner = device_runner(model, pool=pool)
    want = expected(model, rules, count=2)
    first = runner.launch(prefills(rules))
    pool.tensor[TABLES[SequenceId("b")][0]] = float("nan")  # damaged after it was computed
    second = runner.launch(decodes(rules, {s: [] for s in rules}, pending=1))
    assert first.tokens() == {s: (want[s][0],) for s in rules}
    third = runner.launch(decodes(rules, {s: want[s][:1] for s in rules}, pending=1))
    assert second.tokens() == {s: (want[s][1],) for s in rules if s != "b"}
    assert set(third.tokens()) == {"a", "c"}


def test_a_step_that_samples_nothing_can_be_waited_for(model: Model) -> None:
    runner, a = device_runner(model), SequenceId("a")
    part = chunk(PROMPTS[a][:6], table=TABLES[a], sequence=a, sampling=None)
    assert runner.launch([part]).tokens() == {}
    rest = chunk(PROMPTS[a][6:], start=6, table=TABLES[a], sequence=a, sampling=GREEDY)
    want = expected(model, {a: GREEDY}, count=1)[a][0]
    assert runner.launch([rest]).tokens() == {a: (want,)}


def test_a_pending_token_that_nobody_samples_is_refused(model: Model) -> None:
    runner, a = device_runner(model), SequenceId("a")
    with pytest.raises(ValueError, match="chunk a: no launched step samples its pending token"):
        runner.launch(decodes({a: GREEDY}, {a: []}, pending=1))


@pytest.mark.parametrize("token", [-1, 10**6])
def test_a_bias_outside_the_vocabulary_is_refused_before_it_reaches_the_device(
    model: Model, token: int
) -> None:
    rule = Sampling(seed=0, max_tokens=9, logit_bias=((token, 1.0),))
    with pytest.raises(ValueError, match="logit_bias: token"):
        device_runner(model).launch(prefills({SequenceId("a"): rule}))


def test_a_step_larger_than_the_limits_is_refused(model: Model) -> None:
    runner = device_runner(model)
    prompt: Sequence[int] = [1] * 64
    parts = [chunk(prompt, table=range(8), sequence=str(n), sampling=None) for n in range(9)]
    with pytest.raises(ValueError, match="does not fit"):
        runner.launch(parts)


@pytest.mark.parametrize("name", SHAPES)
def test_every_family_gives_the_tokens_of_the_torch_runner(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_checkpoint(tmp_path, SHAPES[name])
    model = load_model(tmp_path, dtype="float32", native=False)
    room = 3 * len(model.config.kv_groups)
    for n, s in enumerate(PROMPTS):
        monkeypatch.setitem(TABLES, s, range(room * n, room * (n + 1)))
    rules = all_with(GREEDY)
    want = expected(model, rules, count=NUM_STEPS)
    assert ahead(device_runner(model), rules, count=NUM_STEPS) == want
