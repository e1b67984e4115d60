"""How much one engine takes on at a time."""

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
