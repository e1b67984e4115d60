"""Settings of one process: frozen, read once, refused as a whole when one value is wrong.

Flags win over the environment (`BATON_<FIELD>`), which wins over the TOML file named by
`--config`, which wins over the defaults. An unknown flag, file key or `BATON_` variable is
refused; `protocol.process.environment` says which variables are known.
"""

import os
import re
import sys
import tomllib
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import (
    BeforeValidator,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, CliSettingsSource, EnvSettingsSource, SettingsConfigDict
from pydantic_settings import SettingsError as SourceError

from protocol.errors import SettingsError
from protocol.process.environment import check_variables
from protocol.store.address import RedisAddress, read_address

MAX_FILE_BYTES = 1 << 20
SECRET = frozenset({"api_key", "redis_password"})
"""Settings that no message shows."""
EXIT_BAD_SETTINGS = 2
EXIT_BAD_CHECKPOINT = 3
S = TypeVar("S", bound="CommandSettings")


def _local(value: object) -> object:
    """A path that says it is one is never a name on the hub."""
    path = str(value)
    return Path(os.path.expanduser(path)).absolute() if path.startswith((".", "~")) else value


ModelPath = Annotated[Path, BeforeValidator(_local)]
"""A directory or, where there is none, a name (`protocol.process.model_folder`)."""


def _without_brackets(value: object) -> object:
    """An IPv6 address as URLs have it is one."""
    return value.strip("[]") if isinstance(value, str) else value


Host = Annotated[str, BeforeValidator(_without_brackets)]
"""An address or a name."""


class CommandSettings(BaseSettings):
    """Base of all settings, those of the command line's tools included."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix="BATON_",
        use_attribute_docstrings=True,
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_avoid_json=True,
        cli_hide_none_type=True,
        protected_namespaces=(),
    )

    config: Path | None = None
    """TOML file with any of these settings. None: flags and environment are enough."""

    @field_validator("*")
    @classmethod
    def _text(cls, value: object) -> object:
        if isinstance(value, str) and value != value.encode(errors="replace").decode():
            raise ValueError("must be UTF-8 text")
        return value


class RedisSettings(CommandSettings):
    """What all who use a Redis can be told of it."""

    redis: str = ""
    """`redis://`, `rediss://` or `unix://`; its name and password, if any, are kept apart."""
    redis_username: str = ""
    """Who we are to Redis. Empty: its default user."""
    redis_password: str = Field(default="", repr=False)
    """Better set as BATON_REDIS_PASSWORD than as a flag or in the address, which other users of the
    machine can read."""
    redis_ca: str = ""
    """File with the certificates of the authorities that a `rediss://` is trusted by. Empty: those
    of the system."""
    redis_prefix: str = Field(default="", pattern=r"^[A-Za-z0-9._:/@{}-]{0,200}$")
    """What all keys begin with, e.g. `production/chat:`. Deployments that share a database have
    different ones, or they use each other's workers."""

    @model_validator(mode="before")
    @classmethod
    def _take_out_secrets(cls, given: dict[str, object]) -> dict[str, object]:
        """What the address says of name and password goes where it is not shown."""
        if not isinstance(url := given.get("redis"), str) or not url:
            return given
        try:
            address = read_address(url)
        except ValueError:
            return given  # told with the field's name, below
        told = {"redis_username": address.username, "redis_password": address.password}
        for name, value in told.items():
            if value and given.get(name):
                raise ValueError(f"redis names a {name[6:]}, and {name} another: give one of them")
        return {**given, "redis": address.url} | {name: v for name, v in told.items() if v}

    @field_validator("redis")
    @classmethod
    def _redis_address(cls, value: str) -> str:
        return read_address(value).url if value else value

    @field_validator("redis_ca")
    @classmethod
    def _for_tls_alone(cls, value: str, others: ValidationInfo) -> str:
        redis = others.data.get("redis") or ""
        if value and not redis.startswith("rediss://"):
            raise ValueError("is for TLS: redis must start with rediss://")
        if value and "ssl_ca_" in redis:
            raise ValueError("redis names an authority too: give one of them")
        return value

    @field_validator("redis_password")
    @classmethod
    def _password_as_it_was_meant(cls, value: str) -> str:
        if value != value.strip():
            raise ValueError("begins or ends with white space; a file's last newline, perhaps")
        return value

    @property
    def redis_address(self) -> RedisAddress:
        return RedisAddress(
            url=self.redis,
            username=self.redis_username,
            password=self.redis_password,
            ca=self.redis_ca,
            prefix=self.redis_prefix,
        )


class ProcessSettings(RedisSettings):
    """Base of every process's settings; what all of them have."""

    redis: str = Field(default="redis://127.0.0.1:6379/0", min_length=1)
    """Where processes find each other."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Events below this level are not written. Info is a few lines per request."""
    parent_pid: int = Field(default=0, ge=0)
    """Drain when this process, the supervisor, is gone. 0: no supervisor."""


class WorkerSettings(ProcessSettings):
    """What prefill and decode workers have in common."""

    model: ModelPath
    """Directory of the checkpoint in Hugging Face format, or its name on the hub,
    `ORG/NAME[@REVISION]`."""
    served_name: str = ""
    """Model name in the API. Empty: that on the hub, or the directory's."""
    worker: str = Field(default="", pattern=r"^[A-Za-z0-9._-]{0,100}$")
    """Stable name of this worker, e.g. `decode-0`. Empty: role, host name and process id."""
    host: Host = "127.0.0.1"
    """Address to listen on; `::` is every one, IPv6 and IPv4. Loopback, because without a cluster
    secret nobody else may in."""
    advertise: Host = ""
    """Host that routers and other workers connect to. Empty: the same as `host`."""
    port: int = Field(default=0, ge=0, le=65535)
    """Port routers connect to. 0: any free one; Redis tells the routers which."""
    metrics_port: int | None = Field(default=None, ge=0, le=65535)
    """Port of `/metrics`, `/ready` and `/health`. None: not served; the router's metrics show
    the workers' beats."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Of weights and KV. Auto: the checkpoint's, as vLLM has it: float32 becomes bfloat16, and so
    does float16 on a CPU, whose kernels have none. float32 for exact parity checks on a CPU."""
    max_model_len: int | None = Field(default=None, ge=1)
    """Most tokens of a sequence, prompt and output. None: as many as the model takes, by its rope.
    Ropes with short and long factors (LongRoPE) take those that this length needs."""
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """Where the engine computes and KV lies: `cpu`, `cuda`, `cuda:1`. Auto: the first GPU that
    torch sees, or else the CPU."""
    cuda_graphs: bool = True
    """On a GPU: capture decode steps of 1, 2, 4, 8, 16, 24 ... sequences at the start and replay
    them, so that a step costs one launch and not some hundreds. Off: to look for a fault. A
    prefill worker decodes nothing, and captures none."""
    batch_invariant: bool = False
    """A row's bits do not depend on what it is computed with, nor on how its prompt was cut, so
    that prefill and decode apart answer bit for bit as one worker does. On a GPU our own kernels
    then multiply, at one shape for all batches; prompts take about three times as long
    (estimated). On a CPU the C kernels do so anyway; with AMX, in place of oneDNN's."""
    kv_memory_share: float = Field(default=0.9, gt=0, le=1)
    """On a GPU: the KV pool's part of the memory that is free beside weights and the largest step,
    which is measured at the start. Of 1: the rest covers gaps between allocations, and what
    libraries take later. Two workers on one GPU need `kv_bytes`, or smaller shares."""
    block_tokens: int = Field(default=16, ge=1, le=1024)
    """Tokens per KV block. 16 wastes at most 15 tokens a request and hashes in microseconds."""
    kv_blocks: int | None = Field(default=None, ge=2, lt=1 << 31)
    """KV pool in blocks. None: `kv_bytes`, or else on a CPU room for 16 full contexts, at most a
    quarter of the free memory and 1 GiB, on a GPU by `kv_memory_share`."""
    kv_bytes: int | None = Field(default=None, ge=1, le=1 << 50)
    """KV pool in bytes, rounded down to blocks. None: see `kv_blocks`."""
    kv_huge_pages: bool = False
    """Take the pool's memory at the start, in huge pages: moving blocks between processes then
    costs a fifth less CPU, starting up to 2 s more per GiB. Not needed where the system's
    `shmem_enabled` is `advise` or `always`: there they come by themselves, when used."""
    max_running: int | None = Field(default=None, ge=1, le=1 << 14)
    """Sequences in one forward pass. None: by the device, said with its reason at the start; on a
    CPU 64, more of which no longer helps its throughput."""
    max_waiting: int = Field(default=256, ge=1, le=1 << 20)
    """Requests queued before new ones are refused as overloaded: four full batches."""
    token_budget: int | None = Field(default=None, ge=1, le=1 << 20)
    """Tokens computed in one step. Bounds how long a prompt's chunk can delay a decode step. None:
    by the device, as `max_running`; on a CPU 512."""
    transports: str = ""
    """Ways KV may travel, best first. Empty: `shm,tcp` from host memory, `cuda_ipc,nccl,shm,tcp`
    from a GPU, where the last two go through host memory and pair with CPU workers. Shared memory
    and CUDA IPC serve one host, TCP and NCCL any; `shm,ucx,tcp` is for hosts with RDMA devices and
    `baton[ucx]`: not the default, or every link elsewhere would warn that it takes a slower way
    than it was told."""
    threads: int = Field(default=0, ge=0, le=1024)
    """Compute threads. 0: one per core this process may use."""
    cores: str = Field(default="", pattern=r"^(\d{1,5}(-\d{1,5})?(,\d{1,5}(-\d{1,5})?)*)?$")
    """Cores to stay on, e.g. `0` or `0,2-3`. Empty: those the system gives. For benchmarks."""
    drain_s: float = Field(default=30.0, ge=0)
    """Seconds that running requests and leases get to finish after SIGTERM."""

    @field_validator("token_budget")
    @classmethod
    def _budget_beyond_decodes(cls, value: int | None, others: ValidationInfo) -> int | None:
        if value is not None and value <= (others.data.get("max_running") or 0):
            raise ValueError("must exceed max_running, or prefill stands still beside a full batch")
        return value


def split_keys(api_keys: str) -> tuple[str, ...]:
    """Those between commas; what is empty is none."""
    return tuple(key for part in api_keys.split(",") if (key := part.strip()))


def check_keys(api_keys: str) -> str:
    """`api_keys`, or ValueError for what opens nothing or cannot travel in a header."""
    keys = split_keys(api_keys)
    if api_keys and not keys:
        raise ValueError("holds no key; unset it if the API shall be open")
    if not all("!" <= character <= "~" for key in keys for character in key):
        raise ValueError("must be printable ASCII without spaces")
    return api_keys


def bearer(api_keys: str) -> dict[str, str]:
    """The headers that open an API with the first of these keys; none for none."""
    keys = split_keys(api_keys)
    return {"authorization": f"Bearer {keys[0]}"} if keys else {}


def load(
    settings: type[S],
    argv: Sequence[str],
    *,
    prog: str | None = None,
    others: Container[str] = frozenset(),
) -> S:
    """Settings from flags, environment and file. Raises SettingsError naming field, value and
    rule of the first thing wrong; exits 0 after `--help`. File keys in `others` are left to
    whoever reads them."""
    check_variables(os.environ)
    try:
        flags = CliSettingsSource[S](
            settings, cli_parse_args=list(argv), cli_prog_name=prog, cli_exit_on_error=False
        )()
        environment = EnvSettingsSource(settings)()
    except SourceError as error:
        text = str(error).removeprefix("error parsing CLI: ")
        why = text.replace("unrecognized arguments:", "unknown setting:")
        raise SettingsError(_without_secrets(why)) from error
    given = {**environment, **flags}
    try:
        file = read_file(given.get("config"))
        mine = {key: value for key, value in file.items() if key not in others}
        return settings(**{**mine, **given})
    except ValidationError as error:
        raise SettingsError(_explain(error.errors()[0])) from error


def load_or_exit(settings: type[S], argv: Sequence[str], *, prog: str | None = None) -> S:
    """As `load`, but a wrong setting is one line on stderr and exit code 2."""
    try:
        return load(settings, argv, prog=prog)
    except SettingsError as error:
        sys.stderr.write(f"{prog or 'baton'}: {error}\n")
        raise SystemExit(EXIT_BAD_SETTINGS) from error


def read_file(path: object) -> Mapping[str, object]:
    """Keys and values of a TOML file; none without a path. Raises SettingsError."""
    if path is None:
        return {}
    file = Path(str(path))
    try:
        if file.exists() and not (file.is_file() and file.stat().st_size <= MAX_FILE_BYTES):
            raise SettingsError(f"config: {str(path)!r}: must be a regular file of at most 1 MiB")
        values = tomllib.loads(file.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise SettingsError(f"config: {str(path)!r}: is nested too deep") from error
    except (OSError, ValueError) as error:
        raise SettingsError(f"config: {str(path)!r}: {error}") from error
    return {key.replace("-", "_"): value for key, value in values.items()}


def _explain(error: ErrorDetails) -> str:
    field = ".".join(str(part) for part in error["loc"]) or "settings"
    if error["type"] == "extra_forbidden":
        return f"unknown setting: {field}"
    if error["type"] == "missing":
        return f"{field}: required; give --{field.replace('_', '-')} or BATON_{field.upper()}"
    rule = error["msg"].removeprefix("Value error, ")
    if not error["loc"]:
        return rule
    given = error["input"]
    shown = repr(_without_secrets(given) if isinstance(given, str) else given)
    if field in SECRET:
        shown = "the value given"
    return f"{field}: {shown}: {rule[0].lower()}{rule[1:]}"


def _without_secrets(text: str) -> str:
    """Names and passwords in a URL, and its query, which may hold one too, are not for logs."""
    return re.sub(r"(?s)(://[^?#]*)[?#].*", r"\1", re.sub(r"(?s)//.*@", "//", text))
