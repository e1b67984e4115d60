"""A request under the terms of whoever sent it: salt, priority, place in the queue, deadline, what
it is charged. One place for all APIs."""

import re
from collections.abc import Mapping
from dataclasses import replace

from router.api.errors import ApiError, bad_field
from router.api.generation import Generation
from router.requests.events import GenerationRequest
from router.tenants.client import Client
from router.tenants.rate_limits import Charge, RateLimits

TIMEOUT_HEADER = "x-request-timeout-s"
_SECONDS = re.compile(rb"[0-9]{1,9}(\.[0-9]{1,9})?")


def deadline_of(headers: Mapping[bytes, bytes], *, most_s: float) -> float:
    """Seconds that a request may take: `most_s`, or fewer that its client asks for. ApiError
    400."""
    given = headers.get(TIMEOUT_HEADER.encode())
    if given is None:
        return most_s
    if not _SECONDS.fullmatch(given) or float(given) <= 0:
        raise ApiError(400, f"{TIMEOUT_HEADER}: must be seconds, more than 0", param=TIMEOUT_HEADER)
    return min(most_s, float(given))


def under_terms(
    generation: Generation, client: Client, *, deadline_s: float, session: str
) -> Generation:
    """ApiError 400 for more choices than its key may ever have in flight."""
    key, most = client.key, generation.max_at_once
    if key is not None and key.max_in_flight is not None:
        if most is None and len(generation.requests) > key.max_in_flight:
            raise bad_field("n", f"at most {key.max_in_flight} choices at once by this API key")
        most = None if most is None else min(most, key.max_in_flight)
    requests = tuple(_under_terms(one, client, deadline_s, session) for one in generation.requests)
    return replace(generation, requests=requests, max_at_once=most)


def _under_terms(
    request: GenerationRequest, client: Client, deadline_s: float, session: str
) -> GenerationRequest:
    key = client.key
    return replace(
        request,
        tenant=client.tenant,
        weight=client.weight,
        salt=request.salt if key is None else key.salt_of(request.salt),
        priority=request.priority if key is None else key.priority_of(request.priority),
        deadline_s=min(request.deadline_s, deadline_s),
        session=session,
    )


class Bill:
    """What one HTTP request is charged of its key's limits; nothing where there are none."""

    def __init__(self, limits: RateLimits | None, client: Client) -> None:
        self._limits = limits
        self._key = client.key
        self._tokens: Charge | None = None

    async def charge_request(self) -> None:
        """Raises LimitReached."""
        if self._limits is not None and self._key is not None:
            await self._limits.charge(self._key, "requests", 1)

    async def charge_tokens(self, generation: Generation) -> None:
        """All that it may become: its prompts, and `max_tokens` of each choice, but no more than a
        minute allows, unless the prompts alone are. Raises LimitReached."""
        key = self._key
        if self._limits is None or key is None or key.tokens_per_minute is None:
            return
        num_prompt = generation.prompt_tokens
        num = num_prompt + sum(one.sampling.max_tokens for one in generation.requests)
        num = max(num_prompt, min(num, key.tokens_per_minute))
        self._tokens = await self._limits.charge(key, "tokens", num)

    def settle(self, num_tokens: int) -> None:
        """It became so many, prompts included."""
        if self._tokens is not None:
            self._tokens.settle(num_tokens)
