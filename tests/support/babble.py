"""What a worker may say that fits its types and means nothing."""

import math
import random
from functools import partial
from typing import Any

from protocol.ids import Epoch
from protocol.messages import (
    Aborted,
    Beat,
    Blocks,
    Computation,
    Emit,
    Failed,
    Finished,
    Landed,
    Load,
    PrefillDone,
    PromptScores,
    PromptVector,
    Speeds,
    Step,
    TokenLogprob,
    ToRouter,
)
from protocol.readings import TokenScore

_CHANCE = random.Random(8)
_WHOLE = (0, 1, -1, 2**31, 2**32, 2**63 - 1, -(2**63))
_REAL = (0.0, -1.0, 1e308, -1e308, 5e-324, math.inf, -math.inf, math.nan)


def anything(of: Computation) -> ToRouter:
    """Whatever fits its type, but for a token that could be meant."""
    number, size = partial(_CHANCE.choice, _WHOLE), partial(_CHANCE.choice, _REAL)
    told: dict[str, Any] = {"request": of.request, "attempt": of.attempt}
    usage: dict[str, Any] = {"cached_tokens": number(), "queued_s": size(), "prefill_s": size()}
    emit = Emit(
        **told, index=_CHANCE.choice((-1, 10**6, *_WHOLE[2:])), token_id=number(), text="\ufffd",
        logprob=size(), top=(TokenLogprob(token_id=number(), logprob=size()),),
    )  # fmt: skip
    blocks = Blocks(total=number(), free=number(), cached=number(), leased=number())
    speeds = Speeds(
        prefill_tokens_per_s=size(), decode_step_s=size(), transfer_bytes_per_s=size()
    )  # fmt: skip
    landed: dict[str, Any] = {
        name: number() for name in ("blocks_reused", "blocks_moved", "bytes_moved")
    }
    words: list[ToRouter] = [
        Step(emits=(emit, emit)),
        PrefillDone(**told, **usage),
        Landed(**told, **landed, transport="memory", fetch_s=size(), exposed_s=size()),
        Finished(**told, **usage, reason="length", num_tokens=10**6, decode_s=size()),
        Failed(**told, code="overloaded", message="?" * 10_000, retryable=True),
        Aborted(**told),
        PromptVector(**told, values=b"\0" * 7),
        PromptScores(
            **told, first=number(),
            scores=(TokenScore(token_id=number(), logprob=size(), rank=number(), top=()),),
        ),
        Beat(
            epoch=Epoch(number()), state="ready", blocks=blocks, speeds=speeds,
            load=Load(running=number(), waiting=number(), waiting_tokens=number()),
            transports_used=(("memory", number()),),
        ),
    ]  # fmt: skip
    return _CHANCE.choice(words)
