"""Penalised sequences are launched ahead, by counts of tokens that the host has not read, and get
the tokens that a CPU gives them, whatever happens on the way."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.device_stepper import VOCABULARY, DeviceStepper, undisturbed

from engine.sequence import SequenceState
from protocol.messages import Sampling

PENALTIES = (
    {"repetition_penalty": 1.4},
    {"presence_penalty": 0.8},
    {"frequency_penalty": 0.6},
    {"repetition_penalty": 0.7, "presence_penalty": -1.5, "frequency_penalty": 2.0},
)


def rule_of(*, max_tokens: int, seed: int = 1, **fields: object) -> Sampling:
    return Sampling(max_tokens=max_tokens, seed=seed, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("penalty", PENALTIES[2:])
def test_a_penalised_sequence_gets_a_token_in_each_step(penalty: dict[str, float]) -> None:
    stepper = DeviceStepper(num_blocks=128, max_running=4)
    rule = rule_of(max_tokens=195, min_tokens=195, temperature=0.9, **penalty)
    run = stepper.submit([5, 9, 9, 30], sampling=rule)
    other = stepper.submit([7], sampling=rule_of(max_tokens=195, min_tokens=195))
    stepper.run()
    assert sum(any(c.sequence == run.sequence.id for c in b) for b in stepper.batches) == 195
    assert len(stepper.batches) <= 197
    assert run.outputs == undisturbed([5, 9, 9, 30], rule, count=195)
    assert len(run.outputs) == len(other.outputs) == 195


rules = st.builds(
    rule_of,
    max_tokens=st.integers(1, 30),
    seed=st.integers(0, 3),
    temperature=st.sampled_from((0.0, 0.0, 1.2)),
    repetition_penalty=st.sampled_from((1.0, 1.3, 0.8)),
    presence_penalty=st.sampled_from((0.0, 0.9, -0.9)),
    frequency_penalty=st.sampled_from((0.0, 0.4, -0.4)),
    logit_bias=st.sampled_from(((), ((4, 2.0), (9, -3.0), (4, 1.0)))),
    min_tokens=st.sampled_from((0, 0, 6)),
)
prompts = st.lists(st.integers(4, VOCABULARY - 1), min_size=1, max_size=12)
events = st.one_of(
    st.tuples(prompts, rules),
    st.sampled_from(("step", "step", "step", "launch", "fail", "fail launch", "abort")),
)


@settings(max_examples=15, deadline=None)
@given(
    st.lists(events, min_size=5, max_size=60), st.integers(8, 24), st.integers(1, 4), st.booleans()
)
def test_tokens_are_those_of_a_cpu_whatever_happens(
    story: list[tuple[list[int], Sampling] | str],
    num_blocks: int,
    max_running: int,
    graphs: bool,
) -> None:
    """Rows are reused by others, steps undone, sequences preempted, aborted and computed alone."""
    stepper = DeviceStepper(num_blocks=num_blocks, max_running=max_running, graphs=graphs)
    for event in story:
        happen(stepper, event)
    while stepper.suspects or stepper.in_flight or stepper.in_state(*RUNNING):
        happen(stepper, "step")
    for run in stepper.runs.values():
        expected = undisturbed(run.tokens, run.sequence.sampling, count=len(run.outputs))
        assert run.outputs == expected


RUNNING = (SequenceState.WAITING, SequenceState.PREFILLING, SequenceState.DECODING)


def happen(stepper: DeviceStepper, event: tuple[list[int], Sampling] | str) -> None:
    alive = [run for run in stepper.runs.values() if not run.verdicts]
    match event:
        case (prompt, rule):
            stepper.submit(list(prompt), sampling=rule)  # type: ignore[arg-type]
        case "abort" if alive:
            stepper.abort(alive[len(stepper.batches) % len(alive)])
        case "fail" if stepper.in_flight:
            stepper.fail()
        case "fail launch" if stepper.may_launch and not stepper.suspects:
            stepper.fail_launch()
        case "launch" if stepper.may_launch and not stepper.suspects:
            stepper.launch()
        case _:
            advance(stepper)


def advance(stepper: DeviceStepper) -> None:
    """As the loop: suspects alone, once what was launched is read."""
    if not stepper.suspects:
        stepper.step()
    elif stepper.in_flight:
        stepper.complete()
    else:
        stepper.repeat(fails=False)
