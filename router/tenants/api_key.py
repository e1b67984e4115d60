"""One API key's terms: whose it is, how urgent, and how much in a minute."""

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """The key itself is not kept."""

    digest: bytes
    """SHA-256 of the key."""
    tenant: str
    """Those of one tenant share prefixes, and a part of the queue."""
    weight: float = 1.0
    """Tokens of its tenant, beside others' where all want more than there are."""
    priority: int = 0
    """Of a request that does not say. One that does is counted from here."""
    most_urgent: int = 0
    """No request has a lower priority than this."""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_in_flight: int | None = None
    """Choices at once, of each router."""
    expires_at: float | None = None
    """Unix seconds, from which on it opens nothing."""

    @property
    def name(self) -> str:
        """One string for each key, which does not open anything."""
        return digest_name(self.digest)

    def priority_of(self, asked: int) -> int:
        return max(self.most_urgent, self.priority + asked)

    def salt_of(self, asked: str) -> str:
        """Of two tenants never the same, whatever salts their requests ask for."""
        return f"{len(self.tenant)}:{self.tenant}:{asked}"


def digest_name(digest: bytes) -> str:
    return digest.hex()[:32]


def key_digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
