"""Sequences that fork another on real pools: the tokens of sequences that compute it all."""

from collections.abc import Callable
from itertools import product

import pytest
from support.device_steps import EOS, LIMITS
from support.eventually import eventually
from support.forwards import pool_for
from support.host_device import HostDevice
from support.observed import RecordingObserver

from engine.batch import SequenceId
from engine.checkpoint.load import load_model
from engine.commands import Submission
from engine.loop import Engine
from engine.models.model import Model
from engine.runner.contract import Runner
from engine.runner.cpu import TorchRunner
from engine.runner.gpu.runner import DeviceRunner
from engine.sampling.rows import sample_on_host
from engine.sequence import Mode
from protocol.messages import Sampling
from protocol.readings import ScorePrompt
from tools.make_checkpoint import Shape, make_checkpoint

PROMPT = [5, 9, 200, 31, 77, 8, 120, 44, 301, 2, 6]
"""One block of eight, and three tokens."""
NAMES = [SequenceId(name) for name in "abcd"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    path = tmp_path_factory.mktemp("model")
    make_checkpoint(path, Shape(family="qwen3"))
    return load_model(path, dtype="float32", native=False)


def on_host(model: Model) -> Runner:
    return TorchRunner(model, pool_for(model), eos_token_ids=EOS)


def on_device(model: Model, *, captured: bool) -> Runner:
    runner = DeviceRunner(
        model, pool_for(model), device=HostDevice(depth=2), sampler=sample_on_host,
        limits=LIMITS, eos_token_ids=EOS,
    )  # fmt: skip
    if captured:
        runner.capture(limit_bytes=1 << 30)
    return runner


def engine_on(runner: Runner, observer: RecordingObserver) -> Engine:
    return Engine(
        runner=runner, limits=LIMITS, eos_token_ids=(), compat="test", observer=observer,
        generations=[0] * runner.num_blocks, check=True,
    )  # fmt: skip


def spoken(runner: Runner, *, forks: bool, prompt: list[int]) -> tuple[list[list[int]], int]:
    """What four sequences of a prompt say, each by a seed of its own, and how many forked."""
    observer = RecordingObserver()
    engine = engine_on(runner, observer)
    for seed, name in enumerate(NAMES):
        sampling = Sampling(seed=seed, max_tokens=9, temperature=1.2, presence_penalty=seed / 4)
        origin = NAMES[0] if forks and seed else None
        salt = "" if forks else name
        engine.submit(
            Submission(id=name, prompt=prompt, sampling=sampling, salt=salt, fork_of=origin)
        )
    engine.start()
    try:
        eventually(lambda: len(observer.endings) == len(NAMES), 20, "all have ended")
        return [observer.tokens[name] for name in NAMES], engine.stats().num_forked
    finally:
        engine.stop()


RUNNERS: dict[str, Callable[[Model], Runner]] = {
    "cpu": on_host,
    "device": lambda model: on_device(model, captured=False),
    "captured": lambda model: on_device(model, captured=True),
}
QUICK = {("cpu", 11), ("captured", 8), ("device", 9)}


@pytest.mark.parametrize(
    ("runner", "num_tokens"),
    [
        pytest.param(*case, marks=() if case in QUICK else pytest.mark.long)
        for case in product(RUNNERS, (8, 9, 11))
    ],
)
def test_forks_say_what_sequences_say_that_computed_it_all(
    model: Model, runner: str, num_tokens: int
) -> None:
    prompt = PROMPT[:num_tokens]
    alone, _ = spoken(on_host(model), forks=False, prompt=prompt)
    tokens, num_forked = spoken(RUNNERS[runner](model), forks=True, prompt=prompt)
    assert tokens == alone and len({tuple(each) for each in alone}) == 4
    assert num_forked == 3


@pytest.mark.parametrize("other", [{"mode": Mode.REMOTE}, {"reading": ScorePrompt()}])
def test_only_a_local_sequence_without_a_reading_forks(
    model: Model, other: dict[str, object]
) -> None:
    engine = engine_on(on_host(model), RecordingObserver())
    submission = Submission(
        id=NAMES[1], prompt=PROMPT, sampling=Sampling(seed=1, max_tokens=1), fork_of=NAMES[0],
        **other,  # type: ignore[arg-type]
    )  # fmt: skip
    with pytest.raises(ValueError, match="fork_of"):
        engine.submit(submission)
