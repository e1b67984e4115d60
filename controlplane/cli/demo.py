"""`make demo`: one question and a follow-up through two prefill and two decode workers.

Run as `python -m controlplane.cli.demo`. Starts a whole cluster on the shipped model and free
ports, shows what the cluster itself reports of both requests (response headers, `usage` and
`/trace`), stops everything, and exits 0 only if KV blocks moved, the follow-up reused the prefix
and both answers are right.
"""

import asyncio
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import httpx
from rich.console import Console

from controlplane.cli.http import chat_body, stream_event
from controlplane.cli.terminal import write
from controlplane.local.cluster import RunningCluster, running
from controlplane.local.display import Display
from controlplane.local.settings import load_up
from controlplane.local.up import SIGNALS, first_failure
from protocol.errors import BatonError
from protocol.process.run import Shutdown, ask_by_signals

STORY = """\
The lamp is in the cellar. The children waited by the old bridge at noon. Greta lives in Cairo. \
The code of the basket is 559. A small boat came back to the quiet shore in the morning. Tom has \
a pet shark. The wind rested beside the street without a sound. Petra likes to eat bread. The \
guests passed the soft hill in the morning. Lena works as a driver. The sun looked at the large \
tree once more. The secret word of Henry is ribbon. The visitors turned towards the empty field. \
Olga's favourite colour is green. The rope is in the garden. Meanwhile the rain came back to the \
small fence at noon. Hanna likes to eat tomatoes. The green monkey stood near the old bridge. \
The compass is in the stable. Viktor's favourite colour is violet. An old man rested beside the \
cold well on Sunday. The code of the mirror is 837. Then the moon turned towards the warm lake \
all day. Sam lives in Sydney. The secret word of Paul is velvet. The neighbours walked along the \
square. David has a pet swan. Now the silver camel moved over the large gate on Friday. Mira \
likes to eat pasta. The snow passed the deep field. The crown is in the attic. The bird moved \
over the park in the evening. Ivan works as a painter. The purple swan passed the road at noon. \
The flute is in the cave. The wind stopped at the warm mill again. The code of the crown is 710. \
Then the black zebra stopped at the cold well. Oscar lives in Oslo. A cloud passed the long well \
all day. The kite is in the tent. The guests rested beside the large fence after lunch. Finn \
likes to eat honey. Later the rain slept near the young bridge at night."""
"""Made-up facts in the shipped model's own style: long enough that its prefill is worth moving."""

START_S = 90.0
ANSWER_S = 60.0


class DemoFailed(BatonError):
    """The cluster did not show what this demo is for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    text: str
    value: str
    """What the right answer contains."""


FIRST = Question(text="What is the secret word of Henry?", value="ribbon")
FOLLOW_UP = Question(text="And where is the compass?", value="stable")


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoTurn:
    """One request, as its client and `/trace` saw it."""

    answer: str
    route: str
    cached_tokens: int
    trace: dict[str, Any]

    @property
    def attempt(self) -> dict[str, Any]:
        attempts: list[dict[str, Any]] = self.trace["attempts"]
        return attempts[-1]


def main() -> None:
    try:
        asyncio.run(_demo())
    except ExceptionGroup as group:
        error = first_failure(group)
        if not isinstance(error, BatonError):
            raise
        _fail(error)
    except (BatonError, httpx.HTTPError, TimeoutError) as error:
        _fail(error)


def _fail(error: Exception) -> None:
    sys.stderr.write(f"demo: {error or type(error).__name__}\n")
    raise SystemExit(1) from error


async def _demo() -> None:
    apart = ("--local-prefill", "never")  # else a short prompt is often sooner without a hand-over
    flags = load_up(
        ["--prefill", "2", "--decode", "2", "--port", "0", "--host", "127.0.0.1", *apart]
    )
    shutdown = Shutdown()
    began = time.monotonic()
    display = Display(err=Console(highlight=False))
    model = flags.settings.api_name
    display.begin(f"Starting 1 router, 2 prefill workers and 2 decode workers on {model}")
    ask_by_signals(shutdown, *SIGNALS)
    with closing(display):
        async with running(flags, on_event=display.on_event, hurry=shutdown.hurry) as local:
            try:
                async with asyncio.timeout(START_S):
                    if not await local.wait_ready(unless=shutdown.asked):
                        raise DemoFailed("interrupted")
                display.settle()
                _say(f"Ready at {local.url} after {time.monotonic() - began:.1f} s")
                await _converse(local, model=model)
            finally:
                display.stop("\nStopping.")
    _say("Everything stopped.")


async def _converse(local: RunningCluster, *, model: str) -> None:
    async with httpx.AsyncClient(
        base_url=local.url, headers=local.headers, timeout=ANSWER_S, trust_env=False
    ) as client:
        messages = [{"role": "user", "content": f"{STORY}\n\n{FIRST.text}"}]
        _say(f"\nA story of {len(STORY.split())} words, then: {FIRST.text}")
        first = await _ask(client, model=model, messages=messages)
        _show(first)
        messages += [
            {"role": "assistant", "content": first.answer},
            {"role": "user", "content": FOLLOW_UP.text},
        ]
        _say(f"\nFollow-up: {FOLLOW_UP.text}")
        second = await _ask(client, model=model, messages=messages)
        _show(second)
    _check(first, second)


async def _ask(
    client: httpx.AsyncClient, *, model: str, messages: Sequence[dict[str, str]]
) -> DemoTurn:
    """Streams one answer to stdout, then fetches its trace."""
    body = chat_body(model, messages, temperature=0, max_tokens=48)
    answer = ""
    cached_tokens = 0
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        if response.status_code != 200:
            await response.aread()
            raise DemoFailed(f"the router answered {response.status_code}: {response.text}")
        headers = response.headers
        sys.stdout.write("Answer: ")
        async for line in response.aiter_lines():
            event = stream_event(line)
            cached_tokens = event.cached_tokens or cached_tokens
            answer += event.text
            write(event.text)
        sys.stdout.write("\n")
    traces = (await client.get(f"/trace/{headers['x-request-id']}")).raise_for_status().json()
    return DemoTurn(
        answer=answer,
        route=headers["x-baton-route"],
        cached_tokens=cached_tokens,
        trace=traces["traces"][0],
    )


def _show(turn: DemoTurn) -> None:
    """Nothing but what the cluster reported."""
    trace, attempt = turn.trace, turn.attempt
    prefill = attempt["prefill"] or f"{attempt['decode']} itself"
    legs = {
        "placed": trace["placed_s"],
        "prefill": attempt["prefill_s"],
        "fetch": attempt["fetch_s"],
        "of it exposed": attempt["exposed_s"],
        "decode": attempt["decode_s"],
        "first token": trace["first_token_s"],
        "total": trace["total_s"],
    }
    rows = {
        "route": turn.route,
        "prefilled by": prefill,
        "decoded by": attempt["decode"],
        "prompt": f"{trace['prompt_tokens']} tokens, {turn.cached_tokens} of them cached",
        "blocks": f"{attempt['prefill_blocks_reused']} reused by prefill, "
        f"{attempt['blocks_reused']} by decode; {attempt['blocks_moved']} moved "
        f"({attempt['bytes_moved']:,} bytes)",
        "transport": attempt["transport"] or "none: no block had to move",
        "seconds": ", ".join(f"{name} {seconds:.3f}" for name, seconds in legs.items()),
    }
    for name, text in rows.items():
        _say(f"  {name:<13} {text}")


def _check(first: DemoTurn, second: DemoTurn) -> None:
    """Raises DemoFailed for the first thing that is off."""
    for question, turn in ((FIRST, first), (FOLLOW_UP, second)):
        if question.value not in turn.answer:
            raise DemoFailed(f"{question.text} {turn.answer!r} does not say {question.value!r}")
    if first.attempt["prefill"] is None or first.attempt["blocks_moved"] == 0:
        raise DemoFailed(f"no KV block moved from prefill to decode; route: {first.route}")
    if second.cached_tokens == 0:
        raise DemoFailed("the follow-up did not reuse the prefix")


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
