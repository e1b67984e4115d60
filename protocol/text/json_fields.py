"""Typed access to the JSON files of a checkpoint; every error names the file and the key."""

from collections.abc import Collection, Mapping
from math import isfinite
from pathlib import Path
from types import MappingProxyType

from protocol.errors import CheckpointError

MAX_SIZE = 1 << 31
MAX_SAID = 1000
"""Characters of an error, which may quote a value of any length."""


class Fields:
    """One JSON object; a key that is absent or null means its default, if it has one."""

    def __init__(
        self,
        file: Path,
        raw: Mapping[str, object],
        *,
        prefix: str = "",
        defaults: Mapping[str, object] = MappingProxyType({}),
    ) -> None:
        """`prefix` goes before every key in errors: where in the file the object is."""
        self.file, self.raw, self.defaults, self._prefix = file, raw, defaults, prefix

    def with_defaults(self, defaults: Mapping[str, object], but: Collection[str] = ()) -> "Fields":
        """The null of a key in `but` stays null."""
        meant = {key: one for key, one in defaults.items() if key not in but or key not in self.raw}
        return Fields(self.file, self.raw, prefix=self._prefix, defaults=meant)

    def error(self, key: str, problem: str) -> CheckpointError:
        if len(problem) > MAX_SAID:
            problem = f"{problem[: MAX_SAID // 2]}...{problem[-MAX_SAID // 2 :]}"
        return CheckpointError(f"{self.file}: {self._prefix}{key} {problem}")

    def get(self, key: str, default: object = None) -> object:
        value = self.raw.get(key)
        return self.defaults.get(key, default) if value is None else value

    def optional_size(self, key: str) -> int | None:
        value = whole(self.get(key))
        if value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_SIZE:
            raise self.error(key, f"must be a positive integer, is {value!r}")
        return value

    def size(self, key: str) -> int:
        value = self.optional_size(key)
        if value is None:
            raise self.error(key, "is missing")
        return value

    def optional_number(self, key: str) -> float | None:
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, int | float) or isinstance(value, bool) or not isfinite(value):
            raise self.error(key, f"must be a number, is {value!r}")
        return float(value)

    def number(self, key: str, default: float | None = None) -> float:
        value = self.optional_number(key)
        value = default if value is None else value
        if value is None:
            raise self.error(key, "is missing")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self.error(key, f"must be true or false, is {value!r}")
        return value


def whole(value: object) -> object:
    """A whole number written as 4096.0, as some tools do, as an integer."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
