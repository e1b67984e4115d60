"""The API keys in force, found by their digest: as fast and as even for thousands as for one.

Not thread-safe: one event loop owns it.
"""

from collections.abc import Iterable

from router.tenants.api_key import ApiKey, key_digest


class KeyRing:
    def __init__(self, keys: Iterable[ApiKey] = ()) -> None:
        self.replace_keys(keys)

    def __len__(self) -> int:
        return len(self._by_digest)

    def replace_keys(self, keys: Iterable[ApiKey]) -> None:
        """All at once: requests under way keep what they were admitted with."""
        self._by_digest = {key.digest: key for key in keys}
        self.num_tenants = len({key.tenant for key in self._by_digest.values()})

    def find_key(self, given: bytes, *, now: float) -> ApiKey | None:
        """`now`: Unix seconds. Compares digests, so that how long it takes tells nothing of any
        key."""
        key = self._by_digest.get(key_digest(given)) if given else None
        is_over = key is not None and key.expires_at is not None and key.expires_at <= now
        return None if is_over else key
