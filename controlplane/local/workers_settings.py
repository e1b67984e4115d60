"""What `baton workers` can be told."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pydantic import Field, model_validator

from controlplane.local.settings import PoolSettings, load_with_children
from decode_worker.settings import DecodeSettings
from prefill_worker.settings import PrefillSettings
from protocol.process.machine import host_name
from protocol.process.model_folder import resolve_model
from protocol.process.settings import Host

KV_PORTS = 4
"""Of one worker: `worker.transfers.settings.TransferSettings.kv_port` says which."""


class NodeSettings(PoolSettings):
    """The workers of one node, prefill and decode together, with all its GPUs; routers and Redis
    are elsewhere. All other flags of a worker are taken too, and hold for each."""

    redis: str = "redis://127.0.0.1:6379/0"
    """Where processes find each other."""
    prefill: int = Field(default=1, ge=0, le=64)
    """Prefill workers."""
    decode: int = Field(default=1, ge=0, le=64)
    """Decode workers."""
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda)$")
    """`cuda`: each worker on a GPU of its own, `cuda:0` and so on, prefill first; where there are
    fewer GPUs than workers they share them by turns. Auto: so where there are GPUs, else the
    CPU."""
    worker: str = Field(default="", pattern=r"^[A-Za-z0-9._-]{0,80}$")
    """What the workers' names begin with; it is no other node's. Empty: the host's name."""
    host: Host = "127.0.0.1"
    """Address to listen on; `::` is every one, IPv6 and IPv4."""
    advertise: str = ""
    """Host that routers and other workers connect to. Empty: the same as `host`."""
    port: int = Field(default=0, ge=0, le=65535)
    """Port that routers connect to of the first worker, the next one's is one higher, and so on.
    0: any free ones."""
    kv_port: int = Field(default=0, ge=0, le=65532)
    """First of the four ports by which KV is fetched from the first worker; the next one's begin
    four higher."""
    metrics_port: int = Field(default=0, ge=0, le=65535)
    """Port of `/ready`, `/health` and `/metrics` of all workers together. 0: any free one, shown at
    the start."""

    @model_validator(mode="after")
    def _some_workers(self) -> "NodeSettings":
        if self.prefill + self.decode == 0:
            raise ValueError("prefill and decode are both 0: nothing would run")
        for name, stride in (("port", 1), ("kv_port", KV_PORTS)):
            first = getattr(self, name)
            if first and first + stride * (self.prefill + self.decode) > 65536:
                raise ValueError(f"{name}: {first}: there are not so many ports above it")
        return self

    @property
    def prefix(self) -> str:
        return self.worker or host_name()


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFlags:
    """A command line taken apart: our settings, and the environment of the workers."""

    settings: NodeSettings
    child_env: dict[str, str]


def load_node(argv: Sequence[str]) -> NodeFlags:
    """Finds the model, or downloads it. Raises SettingsError, CheckpointError."""
    settings, child_env = load_with_children(
        NodeSettings, argv, prog="baton workers", children=(PrefillSettings, DecodeSettings)
    )
    flags = NodeFlags(settings=settings, child_env=child_env)
    folder = resolve_model(settings.model)  # once, for all
    settings = settings.model_copy(update=folder.settings(served_name=settings.served_name))
    return replace(flags, settings=settings)
