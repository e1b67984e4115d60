"""How much one engine takes on at a time, and how much it does unless it is told."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLimits:
    max_running: int
    """Sequences that own blocks and have no ending yet, fetching ones included."""
    max_waiting: int
    """Sequences in the queue beyond those that could start at once; the next one is refused."""
    token_budget: int
    """Tokens of one step: each running decode takes one, prefill chunks share the rest."""
    max_context_tokens: int
    """Prompt and output together."""

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.token_budget <= self.max_running:
            raise ValueError(
                f"token_budget is {self.token_budget} and max_running {self.max_running}: "
                "prefill would stand still beside a full batch of decodes; raise the budget"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSize:
    memory_bytes: int
    num_multiprocessors: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLimits:
    max_running: int
    token_budget: int
    why: str


CPU = StepLimits(max_running=64, token_budget=512, why="a CPU")
SMALL_GPU_BYTES, LARGE_GPU_BYTES = 24 << 30, 64 << 30
LARGE_GPU_MULTIPROCESSORS = 100
"""An A100 has 108, an H200 132."""


def default_limits(
    device: DeviceSize | None,
    *,
    decodes: bool,
    max_running: int | None = None,
    token_budget: int | None = None,
) -> StepLimits:
    """Of a device, None being the host; what is given is kept, and the other number made to go
    with it: a budget more than the sequences. A worker that never `decodes` keeps no decode
    waiting.

    Estimated for GPUs: one reads its weights in the time of some 200 tokens' products, so up to
    about as many sequences come nearly free, if their KV has room; a chunk of 2,048 tokens keeps
    it as busy as a longer one would, and a large one is as soon done with 4,096."""
    usual = CPU if device is None else _gpu_limits(device, decodes=decodes)
    running, budget = max_running or usual.max_running, token_budget or usual.token_budget
    if max_running is None and running >= budget:
        running = max(1, budget // 2)
    if token_budget is None and budget <= running:
        budget = 2 * running
    given = {"max_running": max_running, "token_budget": token_budget}
    named = [name for name, value in given.items() if value is not None]
    why = f"{' and '.join(named)} as set, else {usual.why}" if named else usual.why
    return StepLimits(max_running=running, token_budget=budget, why=why)


def _gpu_limits(device: DeviceSize, *, decodes: bool) -> StepLimits:
    memory = f"a GPU of {device.memory_bytes >> 30} GiB"
    if device.memory_bytes < SMALL_GPU_BYTES:
        return StepLimits(max_running=128, token_budget=2048, why=memory)
    why = f"{memory} and {device.num_multiprocessors} multiprocessors"
    large = device.num_multiprocessors >= LARGE_GPU_MULTIPROCESSORS
    if not (large and device.memory_bytes >= LARGE_GPU_BYTES):
        return StepLimits(max_running=256, token_budget=2048, why=why)
    if decodes:
        return StepLimits(max_running=256, token_budget=4096, why=why)
    return StepLimits(
        max_running=256, token_budget=8192, why=f"{why}, and no decode to keep waiting"
    )
