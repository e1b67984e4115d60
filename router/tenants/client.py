"""Who sends a request, as far as clients are told apart."""

from dataclasses import dataclass

from router.tenants.api_key import ApiKey


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
    def weight(self) -> float:
        return 1.0 if self.key is None else self.key.weight
