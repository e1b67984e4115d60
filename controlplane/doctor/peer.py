"""Two doctors on two machines: each proves that it knows the token, then each measures the way
from the other to itself.

One is the server, one the client. Before the proof nothing is sent but nonces, and nothing else
listens; the source that then does holds test bytes, and its leases are known to the peer alone.
The proof is an HMAC over both nonces, so the token itself never travels. Not encrypted: whoever
can read the wire can read both machines' facts.
"""

import hmac
import secrets
import select
import socket
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Annotated, Final, TypeVar

import msgspec

from controlplane.doctor.facts import Facts
from controlplane.doctor.measure import TrialSource, measure
from controlplane.doctor.planes import measurable
from controlplane.doctor.trial import Outcome, TrialLeases
from kvtransfer.transports.framing import FirstMessage, MessageOutbox
from protocol.codec import Codec
from protocol.errors import BatonError, PeerLost, WireError

VERSION: Final = 2
MAX_MESSAGE_BYTES: Final = 4 << 20
"""Leases are some hundred tickets of some hundred bytes."""
MAX_PROOF_BYTES: Final = 1024
"""All that a caller without the token can make us read."""
PROVE_S: Final = 5.0
"""From connecting to the proof; one caller at a time."""
TALK_S: Final = 30.0
"""The whole conversation after it."""
MAX_REFUSED: Final = 100
_IP_MTU: Final = 14
"""IP_MTU of linux/in.h, which the socket module does not name."""
Secret = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]


class PeerFailed(BatonError):
    """The two doctors did not measure together; says why."""


class Challenge(msgspec.Struct, frozen=True, kw_only=True, tag=1):
    version: int
    nonce: Secret


class Proof(msgspec.Struct, frozen=True, kw_only=True, tag=2):
    nonce: Secret
    mac: Secret


class Denied(msgspec.Struct, frozen=True, kw_only=True, tag=3):
    reason: Annotated[str, msgspec.Meta(max_length=500)]


class Granted(msgspec.Struct, frozen=True, kw_only=True, tag=4):
    """The server knows the token too. Its leases are for the client to fetch."""

    mac: Secret
    facts: Facts
    leases: tuple[TrialLeases, ...]


class ClientMeasured(msgspec.Struct, frozen=True, kw_only=True, tag=5):
    """What the client measured; now the server fetches."""

    facts: Facts
    outcomes: tuple[Outcome, ...]
    leases: tuple[TrialLeases, ...]


class ServerMeasured(msgspec.Struct, frozen=True, kw_only=True, tag=6):
    outcomes: tuple[Outcome, ...]


PeerMessage = Challenge | Proof | Denied | Granted | ClientMeasured | ServerMeasured
M = TypeVar("M", bound=PeerMessage)
_codec: Codec[PeerMessage] = Codec(PeerMessage, max_bytes=MAX_MESSAGE_BYTES)
_proof_codec: Codec[PeerMessage] = Codec(PeerMessage, max_bytes=MAX_PROOF_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerMeasurement:
    """What one side learned."""

    there: Facts
    fetched: tuple[Outcome, ...]
    """From there to here."""
    lent: tuple[Outcome, ...]
    """From here to there, as the other side measured."""
    mtu: int | None
    """Of the way; None: cannot be told."""


def serve_peer(
    listening: socket.socket,
    *,
    token: str,
    facts: Facts,
    wait_s: float,
    on_refused: Callable[[str], None],
) -> PeerMeasurement:
    """Waits for one client that knows the token. Raises PeerFailed."""
    until = time.monotonic() + wait_s
    for _ in range(MAX_REFUSED):
        listening.settimeout(max(0.01, until - time.monotonic()))
        try:
            sock, address = listening.accept()
        except TimeoutError as error:
            raise PeerFailed(f"nobody with the token came within {wait_s:.0f} s") from error
        with sock:
            try:
                return _serve(_PeerConnection(sock, PROVE_S), token=token, facts=facts)
            except _Refused as error:
                on_refused(f"{address[0]}: {error}")
    raise PeerFailed(f"{MAX_REFUSED} callers did not know the token")


def measure_with_peer(host: str, port: int, *, token: str, facts: Facts) -> PeerMeasurement:
    """Goes to a serving doctor, as its client. Raises PeerFailed."""
    try:
        sock = socket.create_connection((host, port), timeout=PROVE_S)
    except OSError as error:
        raise PeerFailed(f"cannot connect to {host}:{port}: {error}") from error
    with sock:
        connection = _PeerConnection(sock, PROVE_S)
        granted = _authenticate(connection, token=token)
        connection.set_deadline(TALK_S)
        fetched = _fetch_all(granted.leases, here=facts, there=granted.facts)
        with closing(_source(sock, facts)) as source:
            connection.send(ClientMeasured(facts=facts, outcomes=fetched, leases=source.leases()))
            lent = connection.expect(ServerMeasured).outcomes
        return PeerMeasurement(there=granted.facts, fetched=fetched, lent=lent, mtu=_mtu(sock))


def _authenticate(connection: "_PeerConnection", *, token: str) -> Granted:
    challenge = connection.receive()
    if not isinstance(challenge, Challenge) or challenge.version != VERSION:
        raise PeerFailed("another version of baton doctor, or something else, serves there")
    nonce = secrets.token_bytes(32)
    connection.send(Proof(nonce=nonce, mac=_mac(token, "client", challenge.nonce, nonce)))
    connection.set_deadline(TALK_S)
    granted = connection.expect(Granted)
    if not hmac.compare_digest(granted.mac, _mac(token, "server", challenge.nonce, nonce)):
        raise PeerFailed("the server does not know the token")
    return granted


class _Refused(Exception):
    """A caller that did not prove that it knows the token."""


def _serve(connection: "_PeerConnection", *, token: str, facts: Facts) -> PeerMeasurement:
    nonce = secrets.token_bytes(32)
    try:
        connection.send(Challenge(version=VERSION, nonce=nonce))
        proof = connection.receive(_proof_codec)
    except PeerFailed as error:
        raise _Refused(str(error)) from error
    if not isinstance(proof, Proof) or not hmac.compare_digest(
        proof.mac, _mac(token, "client", nonce, proof.nonce)
    ):
        with suppress(PeerFailed):
            connection.send(Denied(reason="the token is another"))
        raise _Refused("another token")
    connection.set_deadline(TALK_S)
    with closing(_source(connection.sock, facts)) as source:
        mac = _mac(token, "server", nonce, proof.nonce)
        connection.send(Granted(mac=mac, facts=facts, leases=source.leases()))
        measured = connection.expect(ClientMeasured)
    fetched = _fetch_all(measured.leases, here=facts, there=measured.facts)
    connection.send(ServerMeasured(outcomes=fetched))
    return PeerMeasurement(
        there=measured.facts, fetched=fetched, lent=measured.outcomes, mtu=_mtu(connection.sock)
    )


def _fetch_all(
    leases: tuple[TrialLeases, ...], *, here: Facts, there: Facts
) -> tuple[Outcome, ...]:
    """Measures the transports that can reach at all; of each the first alone."""
    first = {one.transport: one for one in reversed(leases)}
    return tuple(measure(first[name]) for name in measurable(here, there) if name in first)


_MAPPED = "::ffff:"
"""Before an IPv4 address, of a connection to a socket of both families."""


def _source(sock: socket.socket, facts: Facts) -> TrialSource:
    """On the address the peer reached or came from, and on no other."""
    host = str(sock.getsockname()[0]).removeprefix(_MAPPED)
    return TrialSource(host=host, transports=measurable(facts, facts))


def _mac(token: str, role: str, *nonces: bytes) -> bytes:
    return hmac.digest(
        token.encode(), b"baton doctor " + role.encode() + b"".join(nonces), "sha256"
    )


def _mtu(sock: socket.socket) -> int | None:
    try:
        return sock.getsockopt(socket.IPPROTO_IP, _IP_MTU)
    except OSError:  # IPv6
        return None


class _PeerConnection:
    """Messages over a socket, each within what is left of a deadline. Raises PeerFailed."""

    def __init__(self, sock: socket.socket, within_s: float) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.set_deadline(within_s)

    def set_deadline(self, within_s: float) -> None:
        """Seconds from now."""
        self._until = time.monotonic() + within_s

    def send(self, message: PeerMessage) -> None:
        outbox = MessageOutbox(self.sock, _codec)
        outbox.put_message(message)
        try:
            outbox.flush()
            while outbox.num_bytes:
                self._wait(to_send=True)
                outbox.flush()
        except PeerLost as error:
            raise PeerFailed(f"the peer is gone: {error}") from error

    def receive(self, codec: Codec[PeerMessage] = _codec) -> PeerMessage:
        reader = FirstMessage(codec)
        try:
            while (message := reader.read(self.sock)) is None:
                self._wait(to_send=False)
        except PeerLost as error:
            raise PeerFailed(f"the peer is gone: {error}") from error
        except WireError as error:
            raise PeerFailed(f"the peer is no baton doctor: {error}") from error
        return message

    def expect(self, kind: type[M]) -> M:
        """The next message, which must be of this kind."""
        message = self.receive()
        if isinstance(message, Denied):
            raise PeerFailed(f"refused: {message.reason}")
        if not isinstance(message, kind):
            raise PeerFailed(f"the peer said {type(message).__name__} out of turn")
        return message

    def _wait(self, *, to_send: bool) -> None:
        reading, writing = ([], [self.sock]) if to_send else ([self.sock], [])
        left_s = max(0.01, self._until - time.monotonic())
        if not any(select.select(reading, writing, [], left_s)):
            raise PeerFailed("the peer did not answer in time")
