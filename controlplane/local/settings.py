"""What `baton up` can be told.

Flags and file keys that `up` does not know itself but its children do (`--token-budget`,
`--lease-ttl-s`, ...) are handed to them as `BATON_` variables: each child takes those it knows and
refuses bad values in its own words.
"""

import os
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from pydantic import Field, model_validator
from pydantic.fields import FieldInfo

from controlplane.checkout import shipped_model
from decode_worker.settings import DecodeSettings
from prefill_worker.settings import PrefillSettings
from protocol.errors import SettingsError
from protocol.process.environment import PREFIX
from protocol.process.listening import ANY_ADDRESS
from protocol.process.model_folder import resolve_model
from protocol.process.settings import (
    CommandSettings,
    Host,
    ModelPath,
    RedisSettings,
    check_keys,
    load,
    read_file,
)
from router.settings import RouterSettings

ONE_WORKER_ONLY = frozenset(
    {"config", "worker", "advertise", "kv_port", "parent_pid", "processes", "process", "siblings"}
)
"""Settings of the children that cannot be the same for several of them, or are ours to give."""
P = TypeVar("P", bound="PoolSettings")


class PoolSettings(RedisSettings):
    """The workers of one machine."""

    model: ModelPath = Field(default_factory=shipped_model)
    """Checkpoint directory in Hugging Face format, or a name on the hub, `ORG/NAME[@REVISION]`.
    Default: the small model that ships."""
    served_name: str = ""
    """Model name in the API. Empty: that on the hub, or the directory's."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Of weights and KV. Auto: the checkpoint's, float32 and on a CPU float16 as bfloat16. float32
    is exact on a CPU; bfloat16 is half the bytes."""
    prefill: int = Field(default=1, ge=0, le=64)
    """Prefill workers. 0 is the colocated mode: decode workers prefill their own requests."""
    decode: int = Field(default=1, ge=1, le=64)
    """Decode workers."""
    host: Host = "127.0.0.1"
    """Where others reach us."""
    threads: int = Field(default=0, ge=0, le=1024)
    """Compute threads of each worker. 0: the cores divided among the workers."""
    pin: bool = False
    """Keep each worker on one core of its own, by turns. For measurements."""
    kv_blocks: int = Field(default=0, ge=0, lt=1 << 31)
    """KV pool of each worker in blocks. 0: the workers size it by the memory there is."""
    drain_s: float = Field(default=30.0, ge=0)
    """Seconds that running requests get to finish after SIGTERM. A second signal hurries."""
    hung_s: float = Field(default=30.0, ge=0)
    """A process that lives and has answered no probe for this long is killed and started again.
    Far above any pause of a busy machine. 0: never."""
    verbose: bool = False
    """Show every log line of every process, not only warnings."""

    @model_validator(mode="after")
    def _one_thread_a_core(self) -> "PoolSettings":
        if self.pin and self.threads > 1:
            raise ValueError(f"threads: {self.threads}: with pin each worker has one core")
        return self

    @property
    def loopback(self) -> str:
        """Where all but the API listens: of the family of `host`, for it may be the only one."""
        return "::1" if ":" in self.host and self.host != ANY_ADDRESS else "127.0.0.1"

    @property
    def api_name(self) -> str:
        """The model's name in the API."""
        return self.served_name or self.model.resolve().name


class UpSettings(PoolSettings):
    """One router, its workers and, unless told of one, a Redis: all on this machine."""

    host: Host = "127.0.0.1"
    """Address of the HTTP API; `::` is every one, IPv6 and IPv4. Only the router listens there; all
    else stays on loopback."""
    port: int = Field(default=8000, ge=0, le=65535)
    """Port of the HTTP API. 0: any free one, shown when ready."""
    router_processes: int = Field(default=1, ge=1, le=64)
    """Processes of the router, which share the port. One serves some thousands of tokens a
    second."""
    redis: str = ""
    """Redis to use, e.g. redis://127.0.0.1:6379/0. Empty: an embedded one, stopped with us."""
    linger_s: float = Field(default=0.0, ge=0)
    """Seconds after SIGTERM in which the router still accepts, though not ready. 0: nothing is
    before it that would send on."""
    metrics_port: int = Field(default=0, ge=0, le=65535)
    """Port of the first worker's `/metrics`, the next one's is one higher, and so on; in the order
    in which they are shown. 0: any free ones. The router's are on the port of its API."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpFlags:
    """A command line taken apart: our settings, and the environment of the children."""

    settings: UpSettings
    child_env: dict[str, str]

    @property
    def api_key(self) -> str:
        """The router's."""
        return _variable(self.child_env, "API_KEY")


def load_up(argv: Sequence[str]) -> UpFlags:
    """Finds the model, or downloads it. Raises SettingsError, naming the flag, for what neither we
    nor a child knows, CheckpointError for a model that cannot be had."""
    children = (RouterSettings, PrefillSettings, DecodeSettings)
    settings, child_env = load_with_children(UpSettings, argv, prog="baton up", children=children)
    if _variable(child_env, "KEYS_FILE") and not _variable(child_env, "API_KEY"):
        child_env[f"{PREFIX}API_KEY"] = secrets.token_urlsafe(32)  # by which we ask the router
    flags = UpFlags(settings=settings, child_env=child_env)
    try:
        check_keys(flags.api_key)
    except ValueError as error:
        raise SettingsError(f"api_key: the value given: {error}") from error
    folder = resolve_model(settings.model)  # once, for all children
    settings = settings.model_copy(update=folder.settings(served_name=settings.served_name))
    return replace(flags, settings=settings)


def load_with_children(
    kind: type[P], argv: Sequence[str], *, prog: str, children: Sequence[type[CommandSettings]]
) -> tuple[P, dict[str, str]]:
    """Our settings, and the environment of the children. Raises SettingsError, naming the flag, for
    what neither we nor a child knows."""
    fields = {name: field for child in children for name, field in child.model_fields.items()}
    theirs = fields.keys() - ONE_WORKER_ONLY - kind.model_fields.keys()
    ours, child_env = _split(list(argv), fields, theirs=theirs)
    settings = load(kind, ours, prog=prog, others=theirs)
    from_file = _variables(read_file(settings.config), theirs=theirs)
    child_env = {**from_file, **child_env}
    if settings.pin and (cores := _variable(child_env, "CORES")):
        raise SettingsError(f"cores: {cores!r}: with pin each worker gets one by turns")
    return settings, child_env


def _variable(child_env: Mapping[str, str], name: str) -> str:
    return child_env.get(PREFIX + name) or os.environ.get(PREFIX + name, "")


def _split(
    argv: list[str], fields: Mapping[str, FieldInfo], *, theirs: Collection[str]
) -> tuple[list[str], dict[str, str]]:
    """Flags of ours, and `BATON_` variables for those that only children know."""
    switches = (name for name, field in fields.items() if field.annotation is bool)
    off = {f"no_{name}": name for name in switches}
    ours: list[str] = []
    env: dict[str, str] = {}
    while argv:
        flag, equals, value = argv.pop(0).partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        if not flag.startswith("--") or off.get(name, name) not in theirs:
            ours.append(flag + equals + value)
            continue
        if name in off:
            if equals:
                raise SettingsError(f"{flag}: takes no value")
            name, value = off[name], "false"
        elif not equals:
            value = argv.pop(0) if argv and not argv[0].startswith("--") else "true"
        env[f"{PREFIX}{name.upper()}"] = value
    return ours, env


def _variables(file: Mapping[str, object], *, theirs: Collection[str]) -> dict[str, str]:
    """What the file says to the children; the environment wins over it."""
    said = {f"{PREFIX}{key.upper()}": str(value) for key, value in file.items() if key in theirs}
    return {name: value for name, value in said.items() if name not in os.environ}
