"""Steps that go to sockets without Python: what passes, what is left, what is not taken."""

import random
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import msgspec
import pytest

from protocol.codec import one_emit, to_router
from protocol.errors import WireError
from protocol.ids import Epoch, RequestId
from protocol.messages import Aborted, Emit, Step, TokenLogprob
from protocol.process.metrics import RouterMetrics, TokenHistogram
from router.fast_path.fast_path import FastPath, TakenStream
from router.fast_path.native.library import kernels
from router.fast_path.socket_events import SocketEvents

EPOCH, OTHER = Epoch(2**62 + 5), Epoch(9)
BEFORE, AFTER = b'data: {"text":', b"}\n\n"


def gaps() -> TokenHistogram:
    return RouterMetrics().between_tokens_s


def fast_path(counted: TokenHistogram | None = None) -> FastPath:
    library = kernels()
    if library is None:
        pytest.skip("no C compiler")
    return FastPath(library, gaps=counted or gaps())


@dataclass(slots=True)
class Client:
    """The reader of one stream that is on the path."""

    path: FastPath
    reader: socket.socket
    writer: socket.socket
    slot: int = -1
    taken: list[TakenStream] = field(default_factory=list)

    def take(self) -> None:
        self.taken.append(self.path.take_stream(self.slot))

    def read(self) -> bytes:
        """All that has come."""
        found = b""
        self.reader.setblocking(False)
        try:
            while part := self.reader.recv(1 << 20):
                found += part
        except BlockingIOError:
            pass
        return found


@contextmanager
def client(
    path: FastPath, name: str = "r", *, due: int = 1, is_chunked: bool = False, attempt: int = 1
) -> Iterator[Client]:
    reader, writer = socket.socketpair()
    with reader, writer:
        made = Client(path, reader, writer)
        events = SocketEvents(
            socket=writer.fileno(), is_chunked=is_chunked, before=BEFORE, after=AFTER
        )
        made.slot = path.add_stream(
            RequestId(name), epoch=EPOCH, attempt=attempt, due=due, events=events, last_at=10.0,
            when_stuck=made.take,
        )  # fmt: skip
        yield made


def emit(index: int, text: str = "x", *, request: str = "r", attempt: int = 1) -> Emit:
    return Emit(
        index=index, token_id=1000 + index, text=text, logprob=None, top=(),
        request=RequestId(request), attempt=attempt,
    )  # fmt: skip


def step(*emits: Emit) -> bytes:
    return to_router.encode(Step(emits=emits))


def passed(path: FastPath, *emits: Emit, epoch: Epoch = EPOCH, now: float = 11.0) -> list[Emit]:
    """What is left of a step of these."""
    left = path.pass_step(step(*emits), epoch=epoch, now=now)
    assert left is not None
    return [one_emit.decode(each) for each in left]


def event(text: str) -> bytes:
    return BEFORE + msgspec.json.encode(text) + AFTER


def texts() -> list[str]:
    """Each character that JSON or UTF-8 treats apart, and mixtures."""
    given = random.Random(1)
    bounds = (0x7F, 0x80, 0x7FF, 0x800, 0xD7FF, 0xE000, 0xFFFF, 0x10000, 0x10FFFF, 0x2028)
    alone = [chr(code) for code in (*range(1, 0x80), *bounds)]
    return [*alone, *("".join(given.choices(alone, k=given.randrange(1, 60))) for _ in range(300))]


def test_every_text_is_shown_as_the_general_way_shows_it() -> None:
    path = fast_path()
    with client(path, due=0) as one:
        for index, text in enumerate(texts()):
            assert passed(path, emit(index, text)) == []
            assert one.read() == event(text), text


def test_events_are_chunks_where_the_client_knows_them() -> None:
    path = fast_path()
    with client(path, is_chunked=True) as one:
        passed(path, emit(1, "a"), emit(2, "b" * 70_000))
        whole = [event("a"), event("b" * 70_000)]
        assert one.read() == b"".join(b"%x\r\n%b\r\n" % (len(each), each) for each in whole)


def test_each_stream_gets_its_own_and_what_is_of_no_stream_is_left_in_order() -> None:
    path = fast_path()
    with client(path, "a") as a, client(path, "b", due=7) as b:
        strangers = [emit(n, request="c") for n in (1, 2)]
        mixed = [emit(1, "a1", request="a"), strangers[0], emit(7, "b7", request="b"), strangers[1]]
        assert passed(path, *mixed) == strangers
        assert (a.read(), b.read()) == (event("a1"), event("b7"))


@pytest.mark.parametrize(
    ("said", "epoch"),
    [(emit(2), EPOCH), (emit(0), EPOCH), (emit(1, attempt=2), EPOCH), (emit(1), OTHER)],
    ids=["a gap", "again", "another attempt", "another worker"],
)
def test_what_is_not_due_is_left(said: Emit, epoch: Epoch) -> None:
    path = fast_path()
    with client(path) as one:
        assert passed(path, said, epoch=epoch) == [said]
        assert one.read() == b""
        assert passed(path, emit(1, "still due")) == []
        assert one.read() == event("still due")


def test_what_has_passed_is_told_to_whoever_takes_the_stream() -> None:
    path = fast_path()
    with client(path) as one:
        for index in range(1, 200):
            passed(path, emit(index, "" if index % 3 else "y"), now=10.0 + index)
        assert path.last_at(one.slot) == 209.0
        one.take()
        assert one.taken[0].last_at == 209.0
        assert list(one.taken[0].token_ids) == [1000 + index for index in range(1, 200)]
        assert one.taken[0].rest == b""
        assert one.read() == event("y") * 66
        assert passed(path, emit(200)) == [emit(200)]


def test_a_token_without_text_writes_nothing_and_counts() -> None:
    path = fast_path()
    with client(path) as one:
        assert passed(path, emit(1, ""), emit(2, "z")) == []
        assert one.read() == event("z")


def test_log_probabilities_are_no_hindrance() -> None:
    path, top = fast_path(), (TokenLogprob(token_id=4, logprob=-0.5),) * 20
    with client(path) as one:
        said = msgspec.structs.replace(emit(1, "w"), logprob=-1.5, top=top)
        stranger = msgspec.structs.replace(said, request=RequestId("else"))
        assert passed(path, stranger, said) == [stranger]
        assert one.read() == event("w")


def test_what_a_full_socket_does_not_take_is_handed_over_and_the_stream_is_left() -> None:
    path = fast_path()
    with client(path, is_chunked=True) as one:
        one.writer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        text, sent = "long " * 2_000, 0
        while not one.taken:
            sent += 1
            left = passed(path, emit(sent, text), emit(sent + 1, "behind it"))
            sent += not left
        assert left == [emit(sent + 1, "behind it")]
        assert len(one.taken[0].token_ids) == sent
        whole = one.read() + one.taken[0].rest
        shown = [text if index % 2 else "behind it" for index in range(1, sent + 1)]
        chunks = [b"%x\r\n%b\r\n" % (len(event(each)), event(each)) for each in shown]
        assert whole == b"".join(chunks)
        assert path.num_streams == 0


def test_of_a_client_that_is_gone_the_transport_finds_out_with_all_of_the_event() -> None:
    path = fast_path()
    with client(path) as one:
        one.reader.close()
        assert passed(path, emit(1, "a")) == []
        assert one.taken[0].rest == event("a")


def test_gaps_are_counted_as_elsewhere() -> None:
    counted, as_elsewhere = gaps(), gaps()
    path = fast_path(counted)
    with client(path):
        now = 10.0
        for index, gap in enumerate((0.001, 0.005, 0.0051, 0.02, 1.0, 500.0), start=1):
            before, now = now, now + gap
            passed(path, emit(index), now=now)
            as_elsewhere.observe(now - before)
    assert list(counted.counts) == list(as_elsewhere.counts)
    assert counted.sum[0] == as_elsewhere.sum[0]


def _mutilated(frame: bytes, given: random.Random) -> bytes:
    spoilt = bytearray(frame)
    for _ in range(given.randrange(1, 4)):
        spoilt[given.randrange(len(spoilt))] = given.randrange(256)
    return bytes(spoilt[: given.randrange(len(spoilt) + 1)] if given.random() < 0.3 else spoilt)


def test_spoilt_bytes_are_read_as_a_decoder_reads_them_or_not_at_all() -> None:
    path, given = fast_path(), random.Random(3)
    with client(path, attempt=2**40) as one:
        frame = step(emit(5, "q" * 40), emit(9, "é\n"), emit(6, request="s" * 300))
        for short in (frame[:num] for num in range(len(frame))):
            assert path.pass_step(short, epoch=EPOCH, now=11.0) is None
        num_read = 0
        for _ in range(20_000):
            spoilt = _mutilated(frame, given)
            left = path.pass_step(spoilt, epoch=EPOCH, now=11.0)
            if left is not None and (emits := _decoded(left)) is not None:
                assert to_router.decode(spoilt) == Step(emits=tuple(emits))
                num_read += 1
        assert one.read() == b""
        assert num_read > 1_000
    other = to_router.encode(Aborted(request=RequestId("r"), attempt=1))
    assert path.pass_step(other, epoch=EPOCH, now=11.0) is None


def _decoded(left: Sequence[bytes]) -> list[Emit] | None:
    try:
        return [one_emit.decode(each) for each in left]
    except WireError:
        return None


@pytest.mark.parametrize(
    "spoilt", [b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82"]
)
def test_a_text_that_is_not_unicode_is_left(spoilt: bytes) -> None:
    path = fast_path()
    with client(path) as one:
        frame = step(emit(1, "?" * len(spoilt))).replace(b"?" * len(spoilt), spoilt)
        left = path.pass_step(frame, epoch=EPOCH, now=11.0)
        assert left is not None and len(left) == 1
        assert one.read() == b""


def test_thousands_come_and_go() -> None:
    path, given = fast_path(), random.Random(4)
    reader, writer = socket.socketpair()
    with reader, writer:
        events = SocketEvents(socket=writer.fileno(), is_chunked=False, before=b"", after=b"")
        there: dict[str, int] = {}
        for number in range(20_000):
            if len(there) > 3_000 or (there and given.random() < 0.4):
                name = given.choice(list(there)) if number % 50 == 0 else next(iter(there))
                path.take_stream(there.pop(name))
            name = f"request-{number}"
            there[name] = path.add_stream(
                RequestId(name), epoch=EPOCH, attempt=1, due=0, events=events, last_at=0.0,
                when_stuck=lambda: None,
            )  # fmt: skip
        assert path.num_streams == len(there) == len(set(there.values()))
        asked = [emit(0, "", request=f"request-{number}") for number in range(20_000)][-4_000:]
        assert passed(path, *asked) == [each for each in asked if each.request not in there]
