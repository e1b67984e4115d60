"""Steps of decodes and prompts: the decodes run as captured, apart from the prompts, where that is
no slower, and nobody's token is another for it."""

import msgspec
import pytest
from support.device_stepper import BigramModel, DeviceStepper, device_runner, undisturbed
from support.forwards import chunk

from engine.batch import ReadRows
from engine.limits import EngineLimits
from engine.ops.inputs import ForwardInputs
from engine.runner.gpu.mixed_steps import MixedTimes, choose_mixed
from protocol.messages import Sampling

LIMITS = EngineLimits(max_running=4, max_waiting=8, token_budget=20, max_context_tokens=60)


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sequences of each forward; a captured one has as many as it was captured for."""
    seen = list[int]()
    forward = BigramModel.forward

    def counted(model: BigramModel, inputs: ForwardInputs, *args: object, **more: object) -> object:
        seen.append(inputs.num_sequences)
        return forward(model, inputs, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(BigramModel, "forward", counted)
    return seen


def test_beside_a_chunk_of_a_prompt_the_decodes_run_as_captured(forwards: list[int]) -> None:
    runner = device_runner(num_blocks=64, limits=LIMITS)
    assert runner.captured_sizes == (1, 2, 4)
    decodes = [
        chunk([n], start=3, table=range(8 * n, 8 * n + 8), sequence=f"d{n}") for n in range(3)
    ]
    prompt = chunk([5, 6, 7], table=range(40, 48), sequence="p")
    part = chunk([5, 6], table=range(50, 58), sequence="q", sampling=None)
    forwards.clear()
    apart = runner.launch([decodes[0], prompt, *decodes[1:], part]).tokens()
    assert forwards == [4, 2]
    forwards.clear()
    runner.runs_apart = False
    assert runner.launch([decodes[0], prompt, *decodes[1:], part]).tokens() == apart
    assert forwards == [5]
    assert apart.keys() == {"d0", "d1", "d2", "p"}


@pytest.mark.parametrize("graphs", [True, False])
def test_a_step_of_one_kind_is_one_forward(forwards: list[int], graphs: bool) -> None:
    runner = device_runner(num_blocks=64, limits=LIMITS, graphs=graphs)
    forwards.clear()
    runner.launch([chunk([5, 6, 7], table=range(8))]).tokens()
    runner.launch([chunk([5], table=range(8), sequence="d")]).tokens()
    assert forwards == [1, 1]


def test_without_captured_decodes_a_mixed_step_is_one_forward(forwards: list[int]) -> None:
    runner = device_runner(num_blocks=64, limits=LIMITS, graphs=False)
    runner.launch([chunk([5], table=[0]), chunk([5, 6], table=[1], sequence="p")]).tokens()
    assert forwards == [2]


def test_whoever_has_rows_read_is_no_decode() -> None:
    """What a captured step leaves are logits alone."""
    runner = device_runner(num_blocks=64, limits=LIMITS)
    read = ReadRows(rows=range(1), targets=[3])
    last = chunk([5], table=[0], sequence="r", sampling=Sampling(seed=0, max_tokens=1))
    decode = chunk([5], table=[1], sequence="d")
    parts = runner._parts([decode, msgspec.structs.replace(last, read=read)])
    assert [[c.sequence for c in part] for part in parts] == [["d"], ["r"]]


@pytest.mark.parametrize("apart", [True, False])
def test_sequences_that_come_while_others_decode_have_the_tokens_of_a_cpu(apart: bool) -> None:
    stepper = DeviceStepper(num_blocks=64, max_running=4)
    stepper.device.runs_apart = apart
    rule = Sampling(seed=4, max_tokens=12, temperature=0.8, frequency_penalty=0.5)
    for n in range(6):
        stepper.submit([20 + n] * (3 * n + 1), sampling=rule)
        stepper.step()
        stepper.step()
    stepper.run()
    mixed = [{len(c.token_ids) > 1 for c in batch} == {True, False} for batch in stepper.batches]
    assert sum(mixed) > 4
    for run in stepper.runs.values():
        assert run.outputs == undisturbed(run.tokens, rule, count=len(run.outputs))


def test_the_quicker_way_is_taken_and_of_equals_apart() -> None:
    assert not MixedTimes(together_s=1.0, apart_s=1.1).runs_apart
    assert MixedTimes(together_s=1.0, apart_s=1.0).runs_apart
    runner = device_runner(num_blocks=64, limits=LIMITS)
    ticks = iter((0, 9, 9, 18, 18, 27, 30, 32, 32, 33, 33, 36))  # together 4.5 s each, apart 0.5
    times = choose_mixed(runner, LIMITS, clock=lambda: next(ticks))
    assert times == MixedTimes(together_s=4.5, apart_s=0.5) and runner.runs_apart
    ticks = iter((0, 1, 1, 2, 2, 3, 30, 32, 32, 34, 34, 36))
    choose_mixed(runner, LIMITS, clock=lambda: next(ticks))
    assert not runner.runs_apart


def test_where_no_chunk_fits_beside_a_decode_nothing_is_measured() -> None:
    alone = EngineLimits(max_running=1, max_waiting=8, token_budget=20, max_context_tokens=60)
    assert choose_mixed(device_runner(num_blocks=64, limits=alone), alone) is None
    eager = device_runner(num_blocks=64, limits=LIMITS, graphs=False)
    assert choose_mixed(eager, LIMITS) is None
