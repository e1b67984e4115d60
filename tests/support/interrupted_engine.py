"""An engine to which something happens while a step is in flight, and what it must come through."""

from collections.abc import Callable, Sequence

from support.eventually import eventually
from support.fake_runner import FakeRunner, FakeStep, continuation
from support.observed import RecordingObserver
from support.stepper import Stepper

from engine.batch import Chunk, SequenceId
from engine.commands import Submission
from engine.limits import EngineLimits
from engine.loop import Engine
from protocol.messages import Sampling

PROMPT = list(range(200, 220))
SAID = continuation(PROMPT, seed=1, num_tokens=20)


class Interrupted(FakeRunner):
    """Something happens at the launch of each step: commands given there are obeyed while it is in
    flight (depth 2) or after it (depth 1)."""

    at_launch: Callable[[Sequence[Chunk]], None] = staticmethod(lambda chunks: None)

    def launch(self, chunks: Sequence[Chunk]) -> FakeStep:
        self.at_launch(chunks)
        return super().launch(chunks)


class InterruptedEngine:
    """An engine on such a runner, with its observer."""

    def __init__(self, *, depth: int, num_blocks: int = 16, eos: Sequence[int] = ()) -> None:
        self.runner = Interrupted(num_blocks=num_blocks, depth=depth)
        self.observer = RecordingObserver()
        self.engine = Engine(
            runner=self.runner,
            limits=EngineLimits(
                max_running=4, max_waiting=8, token_budget=8, max_context_tokens=60
            ),
            eos_token_ids=eos,
            compat="test",
            generations=self.runner.generations,
            observer=self.observer,
            check=True,
        )

    def submit(self, name: SequenceId, *, prompt: Sequence[int] = PROMPT, max_tokens: int) -> None:
        sampling = Sampling(seed=1, max_tokens=max_tokens)
        self.engine.submit(Submission(id=name, prompt=prompt, sampling=sampling))

    def run(self, *names: SequenceId) -> None:
        """Until these have ended; who comes next finds its tokens right and the pool whole."""
        self.engine.start()
        eventually(lambda: self.observer.endings.keys() >= set(names))
        self.runner.at_launch = lambda chunks: None
        last = SequenceId("last")
        self.submit(last, max_tokens=20)
        eventually(lambda: last in self.observer.endings)
        assert self.observer.tokens[last] == SAID[: len(self.observer.tokens[last])]
        eventually(self.all_back)
        self.engine.stop()
        assert not self.observer.errors

    def all_back(self) -> bool:
        blocks = self.engine.stats().blocks
        return blocks.free + blocks.cached == blocks.total


def whole(stepper: Stepper) -> bool:
    """Nothing is lost, nothing is owned twice."""
    stepper.run()
    stepper.scheduler.check()
    num_blocks = stepper.blocks.num_blocks
    return stepper.all_back and len(set(stepper.cache.allocate_blocks(num_blocks))) == num_blocks
