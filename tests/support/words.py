"""Plausible messages for tests that do not care what is in them."""

from protocol.codec import WIRE_VERSION
from protocol.ids import Epoch, RequestId, WorkerId
from protocol.layout import KvLayout
from protocol.messages import (
    Beat,
    Blocks,
    Decode,
    Load,
    Prefill,
    Registration,
    Role,
    Sampling,
    Speeds,
)

LAYOUT = KvLayout(num_layers=2, num_kv_heads=2, head_dim=8, block_tokens=4, dtype="float32")


def registration(
    worker: str = "decode-0", *, epoch: int = 1, role: Role = "decode", address: str = "tcp://x:1"
) -> Registration:
    return Registration(
        worker=WorkerId(worker),
        epoch=Epoch(epoch),
        role=role,
        pid=1,
        host="127.0.0.1",
        address=address,
        model="tiny",
        compat="same",
        layout=LAYOUT,
        num_blocks=8,
        max_context_tokens=64,
        transports=("shm", "tcp"),
        revision="revision",
        text="text",
        wire=WIRE_VERSION,
    )


def beat(*, epoch: int = 1, running: int = 0) -> Beat:
    return Beat(
        epoch=Epoch(epoch),
        state="ready",
        blocks=Blocks(total=8, free=8, cached=0, leased=0),
        load=Load(running=running, waiting=0, waiting_tokens=0),
        speeds=Speeds(prefill_tokens_per_s=0, decode_step_s=0, transfer_bytes_per_s=0),
        transports_used=(),
    )


def sampling(*, max_tokens: int = 8) -> Sampling:
    return Sampling(seed=1, max_tokens=max_tokens, temperature=0.0)


def prefill(request: str = "r1", *, token_ids: tuple[int, ...] = (1, 2, 3)) -> Prefill:
    return Prefill(
        request=RequestId(request),
        attempt=0,
        token_ids=token_ids,
        generated=(),
        sampling=sampling(),
        salt="",
        deadline_s=30.0,
    )


def decode(request: str = "r1", *, token_ids: tuple[int, ...] = (1, 2, 3)) -> Decode:
    return Decode(
        request=RequestId(request),
        attempt=0,
        token_ids=token_ids,
        generated=(),
        sampling=sampling(),
        salt="",
        deadline_s=30.0,
        ticket=None,
    )
