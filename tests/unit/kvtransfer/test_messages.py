import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtransfer.messages import (
    CONTROL_VERSION,
    MAX_CONTROL_BYTES,
    FetchFailed,
    Finish,
    Open,
    Renew,
    to_sink,
    to_source,
)
from kvtransfer.transports.announcing import announcement
from protocol.errors import WireError
from protocol.ids import Epoch, LeaseId, WorkerId

OPEN = Open(session=5, worker=WorkerId("decode-0"), epoch=Epoch(9))


def test_a_message_comes_back_as_it_went() -> None:
    assert to_source.decode(to_source.encode(OPEN)) == OPEN
    failed = FetchFailed(fetch=1, attempt=2, code="failed", reason="preempted")
    assert to_sink.decode(to_sink.encode(failed)) == failed
    finish = Finish(fetch=1, attempt=2, note=b"\x00\xff", since_s=0.5)
    assert announcement.decode(announcement.encode(finish)) == finish


@pytest.mark.parametrize("version", [b"", b"\x00", bytes([CONTROL_VERSION + 1])])
def test_another_version_is_refused_by_name(version: bytes) -> None:
    with pytest.raises(WireError, match="control version"):
        to_source.decode(version + to_source.encode(OPEN)[1:] if version else b"")


def test_an_oversize_message_is_refused_before_it_is_read() -> None:
    with pytest.raises(WireError, match="exceeds"):
        to_source.decode(bytes([CONTROL_VERSION]) + bytes(MAX_CONTROL_BYTES + 1))


@pytest.mark.parametrize(
    "wrong",
    [
        {"type": 99},
        {"type": 1, "session": -1, "worker": "w", "epoch": 1},
        {"type": 1, "session": "5", "worker": "w", "epoch": 1},
        {"type": 3, "leases": [1], "remaining_s": -1.0},
        {"type": 3, "leases": [1], "remaining_s": 1e9},
        {"type": 5, "lease": 1, "reason": "x" * 2_001},
        [1, 2, 3],
    ],
)
def test_what_does_not_fit_its_type_is_refused(wrong: object) -> None:
    with pytest.raises(WireError):
        to_source.decode(bytes([CONTROL_VERSION]) + msgspec.msgpack.encode(wrong))


@given(st.binary(max_size=200))
def test_random_bytes_are_refused_or_understood(frame: bytes) -> None:
    readers = (
        lambda: to_source.decode(bytes([CONTROL_VERSION]) + frame),
        lambda: to_sink.decode(bytes([CONTROL_VERSION]) + frame),
        lambda: announcement.decode(frame),
    )
    for read in readers:
        try:
            read()
        except WireError:
            continue


@given(st.lists(st.integers(0, 2**63 - 1), max_size=50), st.floats(0, 86_400))
def test_any_renewal_survives_the_wire(leases: list[int], remaining_s: float) -> None:
    message = Renew(leases=tuple(map(LeaseId, leases)), remaining_s=remaining_s)
    assert to_source.decode(to_source.encode(message)) == message
