"""Frames from the wire: typed, bounded, refused when they do not fit."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import codec
from protocol.errors import WireError
from protocol.ids import RequestId
from protocol.messages import Abort, Decode, Emit, Sampling, Step, TokenLogprob

REQUEST = RequestId("r")


def test_a_message_comes_back_as_it_went() -> None:
    sent = Decode(
        request=REQUEST,
        attempt=2,
        token_ids=(1, 2, 3),
        generated=(4,),
        sampling=Sampling(seed=7, max_tokens=3, logit_bias=((5, -100.0),), stop=("\n",)),
        salt="",
        deadline_s=10.0,
        ticket=None,
    )
    assert codec.to_worker.decode(codec.to_worker.encode(sent)) == sent


def test_one_step_carries_the_tokens_of_many_requests() -> None:
    emit = Emit(
        request=REQUEST,
        attempt=0,
        index=3,
        token_id=17,
        text="é",
        logprob=-0.5,
        top=(TokenLogprob(token_id=17, logprob=-0.5),),
    )
    step = Step(emits=(emit, emit))
    assert codec.to_router.decode(codec.to_router.encode(step)) == step


def test_a_message_of_the_other_direction_is_refused() -> None:
    frame = codec.to_worker.encode(Abort(request=REQUEST, attempt=0, reason="client gone"))
    with pytest.raises(WireError, match="malformed"):
        codec.to_router.decode(frame)


def test_an_oversized_frame_is_refused_before_it_is_parsed() -> None:
    small: codec.Codec[Abort] = codec.Codec(Abort, max_bytes=8)
    with pytest.raises(WireError, match="exceeds 8"):
        small.decode(b"\x00" * 9)


@pytest.mark.parametrize(
    "instead",
    [
        pytest.param(b"\xa6reason\xa3a\xf3b", id="text that is not UTF-8"),
        pytest.param(b"\xa5other" + b"\x91" * 100_000, id="arrays in arrays"),
    ],
)
def test_what_msgspec_refuses_by_other_names_is_refused_too(instead: bytes) -> None:
    honest = codec.to_worker.encode(Abort(request=REQUEST, attempt=0, reason="REASON"))
    frame = honest.replace(b"\xa6reason\xa6REASON", instead)
    with pytest.raises(WireError, match="malformed"):
        codec.to_worker.decode(frame)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused_or_decoded_never_anything_else(frame: bytes) -> None:
    try:
        codec.to_worker.decode(frame)
    except WireError as error:
        causes = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
        assert isinstance(error.__cause__, causes)
