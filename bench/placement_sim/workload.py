"""What a fleet is asked for in one run, and who of it comes late."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count

from bench.placement_sim.hardware import Hardware
from bench.placement_sim.request import Request
from bench.placement_sim.traces import by_arrival


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    name: str
    requests: Sequence[Request]
    late: Mapping[str, float] = field(default_factory=dict)
    """When workers of these names come; all others are there from the start."""
    part_at_start: float = 1.0
    """Of the workers; a load is theirs."""

    def stretch(self, factor: float) -> "Workload":
        """All times multiplied."""
        requests = [replace(each, arrives_at=each.arrives_at * factor) for each in self.requests]
        late = {name: when * factor for name, when in self.late.items()}
        return replace(self, requests=requests, late=late)


SYSTEM_BLOCKS, TENANT_BLOCKS = 8, 16
NUM_TENANTS = 24
HOT_PART = 0.5
"""Of all requests, those of the hottest tenant: more than one worker can prefill."""
OUTPUT_TOKENS = 200


def misleading(size: int, *, num_requests: int, hardware: Hardware) -> list[Workload]:
    """Where the longest match is the wrong guide: one system prompt for all, hot tenants, and half
    of the workers cold when they come. For `size` workers of each role; spread with
    `traces.compress`."""
    tenants = _tenants(num_requests, hardware)
    half_s = tenants[len(tenants) // 2].arrives_at
    roles = ("prefill", "decode")
    late = {f"{role}-{i:04}": half_s for role in roles for i in range(size // 2, size)}
    return [
        Workload(name="one_system_prompt", requests=_system_prompt(num_requests, hardware)),
        Workload(name="hot_tenants", requests=tenants),
        Workload(name="cold_half", requests=tenants, late=late, part_at_start=0.5),
    ]


def _system_prompt(num_requests: int, hardware: Hardware) -> list[Request]:
    """A common beginning and an end of its own, of 1 to 12 blocks."""
    fresh = count(SYSTEM_BLOCKS)

    def blocks(chance: random.Random) -> tuple[int, ...]:
        own = chance.randint(1, 12)
        return (*range(SYSTEM_BLOCKS), *(next(fresh) for _ in range(own)))

    return _poisson(num_requests, hardware, blocks)


def _tenants(num_requests: int, hardware: Hardware) -> list[Request]:
    """A beginning for each tenant, one of which sends `HOT_PART` of all."""
    fresh = count(NUM_TENANTS * TENANT_BLOCKS)

    def blocks(chance: random.Random) -> tuple[int, ...]:
        tenant = 0 if chance.random() < HOT_PART else chance.randrange(1, NUM_TENANTS)
        first = tenant * TENANT_BLOCKS
        own = chance.randint(1, 8)
        return (*range(first, first + TENANT_BLOCKS), *(next(fresh) for _ in range(own)))

    return _poisson(num_requests, hardware, blocks)


def _poisson(
    num_requests: int, hardware: Hardware, blocks: Callable[[random.Random], tuple[int, ...]]
) -> list[Request]:
    """One a second on average."""
    chance = random.Random(0)

    def arrivals() -> Iterator[Request]:
        now = 0.0
        for _ in range(num_requests):
            now += chance.expovariate(1.0)
            prompt = blocks(chance)
            yield Request(
                number=0,
                arrives_at=now,
                num_tokens=len(prompt) * hardware.block_tokens + chance.randint(1, 500),
                num_output=1 + min(2000, round(chance.expovariate(1 / OUTPUT_TOKENS))),
                blocks=prompt,
            )

    return by_arrival(arrivals())
