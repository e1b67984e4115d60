"""What is left of a key's limits, in the headers that clients of each API look at."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from router.tenants.allowance import Standing
from router.tenants.limit_reached import LimitKind

RATE_HEADERS = tuple(
    name
    for what in ("limit", "remaining", "reset")
    for kind in ("requests", "tokens")
    for name in (f"x-ratelimit-{what}-{kind}", f"anthropic-ratelimit-{kind}-{what}")
)
"""All that there may be."""


def rate_headers(
    standings: Mapping[LimitKind, Standing], *, is_anthropic: bool, now: float
) -> dict[str, str]:
    """`x-ratelimit-limit-requests` and the like, or as Anthropic names them. `now`: Unix
    seconds."""
    shown = dict[str, str]()
    for kind, standing in standings.items():
        if is_anthropic:
            whole_at = datetime.fromtimestamp(now, UTC) + timedelta(seconds=standing.reset_s)
            shown[f"anthropic-ratelimit-{kind}-limit"] = str(standing.limit)
            shown[f"anthropic-ratelimit-{kind}-remaining"] = str(standing.remaining)
            shown[f"anthropic-ratelimit-{kind}-reset"] = f"{whole_at:%Y-%m-%dT%H:%M:%SZ}"
        else:
            shown[f"x-ratelimit-limit-{kind}"] = str(standing.limit)
            shown[f"x-ratelimit-remaining-{kind}"] = str(standing.remaining)
            shown[f"x-ratelimit-reset-{kind}"] = _duration(standing.reset_s)
    return shown


def _duration(seconds: float) -> str:
    """As OpenAI writes it: `1m2s`, `8.64s`."""
    minutes, rest = divmod(round(seconds, 2), 60)
    return f"{minutes:.0f}m{rest:.0f}s" if minutes else f"{rest:.4g}s"
