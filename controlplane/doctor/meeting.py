"""Two doctors on two machines: each proves that it knows the token, then each measures the way
from the other to itself.

One serves (`serve`), one comes (`visit`). Before the proof nothing is said but nonces, and nothing
else listens; the source that then does holds test bytes, and its leases are known to the peer
alone. The proof is an HMAC over both nonces, so the token itself never travels. Not encrypted:
whoever can read the wire can read both machines' facts.
"""

import hmac
import secrets
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Final

import msgspec

from controlplane.doctor.borrower import borrow
from controlplane.doctor.facts import Facts
from controlplane.doctor.lender import Lender
from controlplane.doctor.planes import measurable
from controlplane.doctor.trial import Offer, Outcome
from protocol.codec import Codec
from protocol.errors import BatonError, WireError

VERSION: Final = 1
MAX_WORD_BYTES: Final = 4 << 20
"""Offers are some hundred tickets of some hundred bytes."""
MAX_PROOF_BYTES: Final = 1024
"""All that a stranger can make us read."""
PROVE_S: Final = 5.0
"""From connecting to the proof; one caller at a time."""
TALK_S: Final = 30.0
"""The whole conversation after it."""
MAX_STRANGERS: Final = 100
_LENGTH = struct.Struct("<I")
_IP_MTU: Final = 14
"""IP_MTU of linux/in.h, which the socket module does not name."""
Secret = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]


class MeetingFailed(BatonError):
    """The two did not come together; says why."""


class Challenge(msgspec.Struct, frozen=True, kw_only=True, tag=1):
    version: int
    nonce: Secret


class Proof(msgspec.Struct, frozen=True, kw_only=True, tag=2):
    nonce: Secret
    seal: Secret


class Denied(msgspec.Struct, frozen=True, kw_only=True, tag=3):
    reason: Annotated[str, msgspec.Meta(max_length=500)]


class Granted(msgspec.Struct, frozen=True, kw_only=True, tag=4):
    """The server knows the token too. Its offers are for the visitor to fetch."""

    seal: Secret
    facts: Facts
    offers: tuple[Offer, ...]


class Turned(msgspec.Struct, frozen=True, kw_only=True, tag=5):
    """What the visitor measured; now the server fetches."""

    facts: Facts
    outcomes: tuple[Outcome, ...]
    offers: tuple[Offer, ...]


class Done(msgspec.Struct, frozen=True, kw_only=True, tag=6):
    """What the server measured."""

    outcomes: tuple[Outcome, ...]


Word = Challenge | Proof | Denied | Granted | Turned | Done
_word: Codec[Word] = Codec(Word, max_bytes=MAX_WORD_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Encounter:
    """What one side learned."""

    there: Facts
    fetched: tuple[Outcome, ...]
    """From there to here."""
    lent: tuple[Outcome, ...]
    """From here to there, as the other side measured."""
    mtu: int | None
    """Of the way; None: cannot be told."""


def serve(
    listening: socket.socket,
    *,
    token: str,
    facts: Facts,
    wait_s: float,
    on_stranger: Callable[[str], None],
) -> Encounter:
    """Waits for one peer that knows the token. Raises MeetingFailed."""
    until = time.monotonic() + wait_s
    for _ in range(MAX_STRANGERS):
        listening.settimeout(max(0.01, until - time.monotonic()))
        try:
            sock, address = listening.accept()
        except TimeoutError as error:
            raise MeetingFailed(f"nobody with the token came within {wait_s:.0f} s") from error
        with sock:
            try:
                return _host(_Line(sock, PROVE_S), token=token, facts=facts)
            except _Stranger as error:
                on_stranger(f"{address[0]}: {error}")
    raise MeetingFailed(f"{MAX_STRANGERS} callers did not know the token")


def visit(host: str, port: int, *, token: str, facts: Facts) -> Encounter:
    """Goes to a serving doctor. Raises MeetingFailed."""
    try:
        sock = socket.create_connection((host, port), timeout=PROVE_S)
    except OSError as error:
        raise MeetingFailed(f"cannot connect to {host}:{port}: {error}") from error
    with sock:
        line = _Line(sock, PROVE_S)
        granted = _introduce(line, token=token)
        line.give(TALK_S)
        fetched = _fetch_all(granted.offers, here=facts, there=granted.facts)
        with _lender(sock, facts) as lender:
            line.say(Turned(facts=facts, outcomes=fetched, offers=lender.offers()))
            match line.hear():
                case Done(outcomes=lent):
                    pass
                case word:
                    raise MeetingFailed(f"the peer said {type(word).__name__} out of turn")
        return Encounter(there=granted.facts, fetched=fetched, lent=lent, mtu=_mtu(sock))


def _introduce(line: "_Line", *, token: str) -> Granted:
    challenge = line.hear()
    if not isinstance(challenge, Challenge) or challenge.version != VERSION:
        raise MeetingFailed("another version of baton doctor, or something else, serves there")
    nonce = secrets.token_bytes(32)
    line.say(Proof(nonce=nonce, seal=_seal(token, "visitor", challenge.nonce, nonce)))
    line.give(TALK_S)
    match line.hear():
        case Granted() as granted:
            if not hmac.compare_digest(
                granted.seal, _seal(token, "server", challenge.nonce, nonce)
            ):
                raise MeetingFailed("the server does not know the token")
            return granted
        case Denied(reason=reason):
            raise MeetingFailed(f"refused: {reason}")
        case word:
            raise MeetingFailed(f"the peer said {type(word).__name__} out of turn")


class _Stranger(Exception):
    """A caller that did not prove that it knows the token."""


def _host(line: "_Line", *, token: str, facts: Facts) -> Encounter:
    nonce = secrets.token_bytes(32)
    try:
        line.say(Challenge(version=VERSION, nonce=nonce))
        proof = line.hear(max_bytes=MAX_PROOF_BYTES)
    except MeetingFailed as error:
        raise _Stranger(str(error)) from error
    if not isinstance(proof, Proof) or not hmac.compare_digest(
        proof.seal, _seal(token, "visitor", nonce, proof.nonce)
    ):
        line.dismiss("the token is another")
        raise _Stranger("another token")
    line.give(TALK_S)
    with _lender(line.sock, facts) as lender:
        seal = _seal(token, "server", nonce, proof.nonce)
        line.say(Granted(seal=seal, facts=facts, offers=lender.offers()))
        turned = line.hear()
    if not isinstance(turned, Turned):
        raise MeetingFailed(f"the peer said {type(turned).__name__} out of turn")
    fetched = _fetch_all(turned.offers, here=facts, there=turned.facts)
    line.say(Done(outcomes=fetched))
    return Encounter(there=turned.facts, fetched=fetched, lent=turned.outcomes, mtu=_mtu(line.sock))


def _fetch_all(offers: tuple[Offer, ...], *, here: Facts, there: Facts) -> tuple[Outcome, ...]:
    """Measures the transports that can reach at all; of each the first offer alone."""
    first = {offer.transport: offer for offer in reversed(offers)}
    return tuple(borrow(first[name]) for name in measurable(here, there) if name in first)


def _lender(sock: socket.socket, facts: Facts) -> Lender:
    """On the address the peer reached or came from, and on no other."""
    return Lender(host=sock.getsockname()[0], transports=measurable(facts, facts))


def _seal(token: str, role: str, *nonces: bytes) -> bytes:
    return hmac.digest(
        token.encode(), b"baton doctor " + role.encode() + b"".join(nonces), "sha256"
    )


def _mtu(sock: socket.socket) -> int | None:
    try:
        return sock.getsockopt(socket.IPPROTO_IP, _IP_MTU)
    except OSError:  # IPv6
        return None


class _Line:
    """Words over a socket, each within what is left of a deadline. Raises MeetingFailed."""

    def __init__(self, sock: socket.socket, within_s: float) -> None:
        self.sock = sock
        self.give(within_s)

    def give(self, within_s: float) -> None:
        """The deadline from now on."""
        self._until = time.monotonic() + within_s

    def say(self, word: Word) -> None:
        packed = _word.encode(word)
        self.sock.settimeout(max(0.01, self._until - time.monotonic()))
        try:
            self.sock.sendall(_LENGTH.pack(len(packed)) + packed)
        except OSError as error:
            raise MeetingFailed(f"the peer is gone: {error}") from error

    def hear(self, *, max_bytes: int = MAX_WORD_BYTES) -> Word:
        (length,) = _LENGTH.unpack(self._read(_LENGTH.size))
        if length > max_bytes:
            raise MeetingFailed(f"the peer announced {length} bytes: it is no baton doctor")
        try:
            return _word.decode(self._read(length))
        except WireError as error:
            raise MeetingFailed(f"the peer is no baton doctor: {error}") from error

    def dismiss(self, reason: str) -> None:
        try:
            self.say(Denied(reason=reason))
        except MeetingFailed:
            return

    def _read(self, num_bytes: int) -> bytes:
        data = b""
        while len(data) < num_bytes:
            self.sock.settimeout(max(0.01, self._until - time.monotonic()))
            try:
                part = self.sock.recv(min(1 << 16, num_bytes - len(data)))
            except OSError as error:
                raise MeetingFailed(f"the peer says nothing: {error}") from error
            if not part:
                raise MeetingFailed("the peer closed the connection")
            data += part
        return data
