"""What a workload asks for, and what became of it."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """`blocks`: a number for each full block of the prompt, equal where all before is equal."""

    number: int
    arrives_at: float
    num_tokens: int
    num_output: int
    blocks: tuple[int, ...]
    tenant: str = ""
    priority: int = 0
    """The lower, the sooner, in the router and on its worker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Workers by index: prefill and decode workers are counted apart."""

    prefill: int | None
    """None: `decode` computes the prompt itself."""
    decode: int
    source: tuple[str, int] | None = None
    """A third worker, by name, and how many tokens of the prompt's beginning it should have."""


@dataclass(slots=True, eq=False, kw_only=True)
class Journey:
    """One request on its way. Times are of the simulation's clock, `num_` counts are tokens."""

    request: Request
    route: Route | None = None
    placed_at: float = 0.0
    first_token_at: float = 0.0
    ended_at: float = 0.0
    num_computed: int = 0
    num_cached: int = 0
    """Of the prompt, that nobody computed for it."""
    num_expected: int = 0
    """Cached where it waits, when it came there."""
    num_pulled: int = 0
    num_private_blocks: dict[str, int] = field(default_factory=dict)
    held: dict[str, int] = field(default_factory=dict)
    """Leading blocks that it keeps a worker's cache from evicting, by worker."""

    @property
    def urgency(self) -> tuple[int, int]:
        """The lower goes first: by priority, then by arrival."""
        return self.request.priority, self.request.number

    @property
    def num_left(self) -> int:
        return self.request.num_tokens - self.num_computed

    @property
    def ttft_s(self) -> float:
        return self.first_token_at - self.request.arrives_at

    @property
    def tpot_s(self) -> float:
        """Mean time between two tokens, the hand-over included; 0.0 of one token."""
        gaps = self.request.num_output - 1
        return (self.ended_at - self.first_token_at) / gaps if gaps > 0 else 0.0
