"""Who sends a request, as far as clients are told apart."""

import hashlib
from dataclasses import dataclass

from router.tenants.api_key import ApiKey

KEYED = "key "
"""What the name of a client with a key begins with; then there is its digest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    name: str
    """One string for each: a key, or else an address. Not for logs or answers."""
    key: ApiKey | None = None
    """Its terms, if its key is of the keys file. Without: all prefixes are shared, its priority is
    what it asks for, and nothing is limited by the minute."""

    @property
    def tenant(self) -> str:
        """Whose place in the queue is its place."""
        return self.name if self.key is None else f"tenant {self.key.tenant}"

    @property
    def owner(self) -> str:
        """Whose kept responses are its own. Without keys there is one owner."""
        if self.key is not None:
            return hashlib.sha256(self.tenant.encode()).hexdigest()[:32]
        return self.name.removeprefix(KEYED) if self.name.startswith(KEYED) else "all"

    @property
    def weight(self) -> float:
        return 1.0 if self.key is None else self.key.weight
