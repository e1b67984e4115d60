"""Rounds of transfers through someone who spoils what passes, and of strangers who say anything.

`make fuzz` runs them until its seconds are over; the tests run some. In every round real sinks
fetch from a real source; whatever is said to either, every fetch and lease ends in time, what
lands is right, neither end breaks, and nothing stays behind. A round that fails leaves what was
said in `build/fuzz/`, beside its seed.
"""

import argparse
import json
import random
import secrets
import socket
import struct
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

import zmq
from support.census import Census, back_to, resident_bytes, settled
from support.eventually import eventually
from support.fetching import TimedEnds, fetch
from support.middle import Middle, Way
from support.mutation import EDGES, Mutator
from support.outcomes import lands, same_bytes
from support.prefixes import SEED, Shelf, prefix_at, pull
from support.transfer import COMPAT, LAYOUT, Borrower, Lender

from kvtransfer.endings import FetchEnd, Landed, Lost
from kvtransfer.messages import (
    CONTROL_VERSION,
    Borrow,
    Cancel,
    Open,
    Opened,
    Release,
    Renew,
    SessionId,
    StreamHello,
    stream_hello,
    to_sink,
    to_source,
)
from kvtransfer.transports.tcp.messages import TcpSetup, tcp_setup
from kvtransfer.transports.tcp.plane import WINDOW_BYTES
from protocol.ids import WorkerId
from protocol.messages import Ticket

FAILURES = Path(__file__).resolve().parents[2] / "build" / "fuzz"
LANES = 12
"""Rounds at a time, each with a sink that stays and blocks of its own."""
FETCHES = 3
FETCH_BLOCKS = 5
LEASE_TTL_S = 0.4
DEADLINE_S = 0.8
ENDED_WITHIN_S = 5.0
FORGOTTEN_WITHIN_S = 12.0
"""A session without a stream, and a stream without a hello, are let go after 5 s."""
CHECK_EVERY = 50
GROWTH_MIB = 16.0
"""Buffers grow to the largest word there was, and the source remembers its last 1,024 ends: 9 MiB
after 1,800 rounds, most of it in the first hundreds."""
TRANSPORTS = ("shm", "tcp")
_KEPT_BYTES = 2_048


@dataclass
class Spoiler:
    """Harms at a rate of its own, and notes all that it passed on otherwise than it came."""

    chance: random.Random
    said: list[tuple[str, str]] = field(default_factory=list)
    """What was passed on: where, and its bytes."""
    _held: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._mutator = Mutator(self.chance)
        self._rate = self.chance.choice((0.02, 0.1, 0.3))

    def message(self, way: Way, packed: bytes) -> list[bytes]:
        return self._instead(f"message {way}", packed, head=1)

    def word(self, way: Way, packed: bytes) -> list[bytes]:
        return self._instead(f"word {way}", packed, head=0)

    def piece(self, way: Way, piece: bytes) -> bytes | None:
        if self.chance.random() > self._rate:
            return piece
        if self.chance.random() < 0.2:
            return None
        return self._note(f"piece {way}", self._mutator.raw(piece))

    def _instead(self, where: str, packed: bytes, *, head: int) -> list[bytes]:
        """Late, twice, never, spoilt, or as it came; `head` bytes come before the msgpack."""
        late = [self._held.pop(where)] if where in self._held else []
        if self.chance.random() > self._rate:
            return [packed, *late]
        match self.chance.randrange(6):
            case 0:
                self._held[where] = packed
                return late
            case 1:
                return [packed, packed, *late]
            case 2:
                return late
        spoilt = packed[:head] + self._mutator.word(packed[head:])
        return [self._note(where, spoilt), *late]

    def _note(self, where: str, spoilt: bytes) -> bytes:
        self.said.append((where, spoilt[:_KEPT_BYTES].hex()))
        return spoilt


class Fuzz:
    def __init__(self, seed: str) -> None:
        self.seed = seed
        self.endings: Counter[str] = Counter()
        self._broken: list[str] = []
        self._ends = TimedEnds()
        self._lender = Lender(
            ends=self._ends, lease_ttl_s=LEASE_TTL_S, on_broken=self._broken.append,
            num_blocks=LANES * FETCHES * FETCH_BLOCKS, on_borrow=Shelf(blocks=None).hear,
        )  # fmt: skip
        self._borrowers = [
            Borrower(
                transports=(TRANSPORTS[lane % len(TRANSPORTS)],), lease_ttl_s=LEASE_TTL_S,
                on_broken=self._broken.append, num_blocks=self._lender.num_blocks,
            )
            for lane in range(LANES)
        ]  # fmt: skip
        self._pool = ThreadPoolExecutor(LANES)
        self._at_rest = self._warm()
        self._resident = resident_bytes()

    def batch(self, number: int) -> None:
        """A round on every lane at once. Raises AssertionError for what must not be."""
        rounds = range(number * LANES, (number + 1) * LANES)
        list(self._pool.map(self._round, rounds))
        assert not self._broken, self._broken
        self._ends.told.clear()
        self._ends.told_s.clear()
        for borrower in self._borrowers:
            borrower.events.clear()

    def check(self) -> None:
        """Honest fetches land, and nothing has stayed behind."""
        self._land_honestly()
        back_to(self._at_rest, FORGOTTEN_WITHIN_S)
        eventually(lambda: self._lender.source.num_leases == 0, ENDED_WITHIN_S)
        assert not self._ends.twice
        grown = (resident_bytes() - self._resident) / (1 << 20)
        assert grown < GROWTH_MIB, f"{grown:.1f} MiB more than after the warm-up"

    def close(self) -> None:
        self._pool.shutdown()
        for borrower in self._borrowers:
            borrower.close()
        self._lender.close()

    def _warm(self) -> Census:
        for number in range(-2, 0):
            self.batch(number)
        self._land_honestly()
        eventually(lambda: self._lender.source.num_leases == 0)
        return settled(1.0)

    def _land_honestly(self) -> None:
        """On every lane, in spite of all that was said; a busy machine may miss a short lease."""
        for lane, borrower in enumerate(self._borrowers):
            eventually(lambda b=borrower, n=lane: lands(self._lender, b, of(n)))  # type: ignore[misc]

    def _round(self, number: int) -> None:
        chance = random.Random(f"{self.seed}:{number}")
        spoiler = Spoiler(random.Random(chance.random()))
        try:
            if number >= 0 and chance.random() < 0.15:
                Stranger(self._lender, chance, spoiler).bother(of(number % LANES))
            else:
                self._fetch_through(spoiler, chance, number % LANES)
        except BaseException:
            save(self.seed, number, spoiler)
            raise

    def _fetch_through(self, spoiler: Spoiler, chance: random.Random, lane: int) -> None:
        borrower, source = self._borrowers[lane], self._lender.source
        blocks = of(lane)
        parts = [blocks[n * FETCH_BLOCKS : (n + 1) * FETCH_BLOCKS] for n in range(FETCHES)]
        with closing(Middle(spoiler)) as middle:
            num_pulled = chance.randrange(FETCHES)
            tickets = [self._lender.lend(part) for part in parts[num_pulled:]]
            led = [middle.lead(ticket) for ticket in tickets]
            outcomes = [
                pull(
                    borrower,
                    prefix_at(led[0]),
                    part,
                    deadline_s=DEADLINE_S,
                    first_token=part.start * LAYOUT.block_tokens,
                )
                for part in parts[:num_pulled]
            ]
            outcomes += [
                fetch(borrower, ticket, part, deadline_s=DEADLINE_S)
                for ticket, part in zip(led, parts[num_pulled:], strict=True)
            ]
            for ticket in tickets:
                source.publish(ticket.lease, chance.randrange(ticket.num_tokens))
            if chance.random() < 0.2:
                middle.break_streams()
            for ticket in tickets:
                self._lender.write_all(ticket)
            ends = [outcome.end for outcome in outcomes]
        for part, end in zip(parts, ends, strict=True):
            self._judge(borrower, part, end)
        eventually(lambda: all(t.lease in self._ends.told for t in tickets), ENDED_WITHIN_S)

    def _judge(self, borrower: Borrower, part: range, end: FetchEnd) -> None:
        """What is said to have landed is right; the slots are wiped for the next round."""
        self.endings[type(end).__name__] += 1
        right: Sequence[int] = ()
        if isinstance(end, Landed):
            right = part
        elif isinstance(end, Lost):
            right = [part[index] for index in end.landed]
        assert same_bytes(self._lender, borrower, right), end
        for block in part:
            borrower.memory.block(block)[:] = bytes(borrower.memory.block_bytes)


def of(lane: int) -> range:
    """The blocks of a lane."""
    each = FETCHES * FETCH_BLOCKS
    return range(lane * each, (lane + 1) * each)


class Stranger:
    """Someone without a ticket of his own, who knows the format."""

    def __init__(self, lender: Lender, chance: random.Random, spoiler: Spoiler) -> None:
        self._lender = lender
        self._chance = chance
        self._spoiler = spoiler
        self._mutator = Mutator(chance)

    def bother(self, blocks: range) -> None:
        """Open a session, then say anything on the control link and on streams."""
        ticket = self._lender.lend(blocks)
        context = zmq.Context()
        link: zmq.Socket[bytes] = context.socket(zmq.DEALER)
        link.setsockopt(zmq.RCVTIMEO, 2_000)
        link.connect(ticket.address)
        session = self._chance.getrandbits(63)
        link.send(to_source.encode(Open(session=session, worker=WorkerId("x"), epoch=ticket.epoch)))
        opened = to_sink.decode(link.recv())
        assert isinstance(opened, Opened)
        for _ in range(self._chance.randrange(8)):
            link.send(self._said("message", self._message(ticket)))
        for plane in opened.planes:
            if plane.transport in TRANSPORTS:
                self._connect(plane.transport, plane.address, session, ticket)
        self._knock(ticket.address)
        context.destroy(linger=0)

    def _message(self, ticket: Ticket) -> bytes:
        lease = ticket.lease
        packed = to_source.encode(
            self._chance.choice((
                Renew(leases=(lease,), remaining_s=1e3), Release(lease=lease),
                Cancel(lease=lease, reason="x"),
                Open(session=1, worker=WorkerId("y"), epoch=ticket.epoch),
                Borrow(fetch=1, compat=COMPAT, seed=SEED, token_ids=bytes(64)),
            ))
        )  # fmt: skip
        if self._chance.random() < 0.3:
            return self._chance.randbytes(self._chance.randrange(300))
        return packed[:1] + self._mutator.word(packed[1:])

    def _connect(self, transport: str, address: str, session: int, ticket: Ticket) -> None:
        hello = stream_hello.encode(
            StreamHello(
                version=CONTROL_VERSION, session=SessionId(session), epoch=ticket.epoch,
                setup=tcp_setup.encode(TcpSetup(window_bytes=WINDOW_BYTES)),
            )
        )  # fmt: skip
        said = hello if self._chance.random() < 0.5 else self._mutator.word(hello)
        length = len(said) if self._chance.random() < 0.8 else self._chance.choice(EDGES)
        word = struct.pack("<I", length & 0xFFFFFFFF) + said
        rest = self._chance.randbytes(self._chance.randrange(3_000))
        family = socket.AF_INET if transport == "tcp" else socket.AF_UNIX
        host, _, port = address.rpartition(":")
        with socket.socket(family, socket.SOCK_STREAM) as sock, suppress(OSError):
            sock.settimeout(1.0)
            sock.connect((host, int(port)) if host else "\0" + address)
            sock.sendall(self._said(transport, word))
            sock.sendall(self._said(transport, rest))

    def _knock(self, address: str) -> None:
        """Bytes that are no ZMTP, or begin like it."""
        host, _, port = address.removeprefix("tcp://").rpartition(":")
        greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL".ljust(54, b"\0")
        with socket.create_connection((host, int(port)), 1.0) as sock, suppress(OSError):
            begun = self._chance.choice((b"", greeting, greeting[:11]))
            sock.sendall(self._said("zmtp", begun + self._chance.randbytes(200)))

    def _said(self, where: str, packed: bytes) -> bytes:
        self._spoiler.said.append((where, packed[:_KEPT_BYTES].hex()))
        return packed


def save(seed: str, number: int, spoiler: Spoiler) -> None:
    FAILURES.mkdir(parents=True, exist_ok=True)
    to = FAILURES / f"{seed}-{number}.json"
    to.write_text(json.dumps({"seed": seed, "round": number, "said": spoiler.said}, indent=1))
    print(f"what was said is in {to}")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seconds", type=float, default=600.0)
    options.add_argument("--seed", default=secrets.token_hex(4))
    chosen = options.parse_args()
    print(f"seed {chosen.seed}, {chosen.seconds:.0f} s", flush=True)
    until_s, number = time.monotonic() + chosen.seconds, 0
    with closing(Fuzz(chosen.seed)) as fuzz:
        while time.monotonic() < until_s:
            fuzz.batch(number)
            number += 1
            if number % CHECK_EVERY == 0 or time.monotonic() >= until_s:
                fuzz.check()
                mib = resident_bytes() >> 20
                print(f"{number * LANES} rounds, {dict(fuzz.endings)}, {mib} MiB", flush=True)


if __name__ == "__main__":
    main()
