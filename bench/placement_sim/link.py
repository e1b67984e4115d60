"""One worker's network card: transfers one after the other, each way."""

from dataclasses import dataclass

from bench.placement_sim.hardware import Hardware


@dataclass(slots=True, eq=False)
class Card:
    out_free_at: float = 0.0
    in_free_at: float = 0.0


def book_transfer(
    source: Card,
    sink: Card,
    hardware: Hardware,
    *,
    num_tokens: int,
    begins_at: float,
    computed_at: float,
    last_tokens: int,
) -> float:
    """When the last byte lands: the cards are taken from `begins_at` on, the last `last_tokens`
    do not exist before `computed_at`."""  # fmt: skip
    num_bytes = num_tokens * hardware.token_bytes
    begins_at = max(begins_at, source.out_free_at, sink.in_free_at)
    flown_at = begins_at + num_bytes / hardware.bytes_per_s
    last_s = min(num_tokens, last_tokens) * hardware.token_bytes / hardware.bytes_per_s
    landed_at = max(flown_at, computed_at + last_s)
    source.out_free_at = sink.in_free_at = flown_at
    return landed_at + hardware.latency_s
