"""NCCL by ctypes: the library that torch brings or the system has.

Implements `kvtransfer.device.collectives` with non-blocking communicators, so that no call waits
for the other rank. Works from 2.18 on, whose configuration later versions still take. Where it
finds no library, or an older one, it raises TransferError. Knows no torch.
"""

import ctypes
import importlib.util
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kvtransfer.device.collectives import PATIENCE_S, UNIQUE_ID_BYTES
from kvtransfer.device.driver import Stream
from kvtransfer.native.copy import Span
from protocol.errors import PeerLost, TransferError

_SUCCESS: Final = 0
_IN_PROGRESS: Final = 7
_UINT8: Final = 1
_LEAST_VERSION: Final = 21_800
_SHARED_GPU_VERSION: Final = 23_000
"""From here on two ranks may share a GPU, when the environment says so."""
_SHARED_GPU: Final = "NCCL_MULTI_RANK_GPU_ENABLE"


class _UniqueId(ctypes.Structure):
    _fields_ = (("internal", ctypes.c_char * UNIQUE_ID_BYTES),)


class _Config(ctypes.Structure):
    """ncclConfig_t as of 2.17; later versions read no further and fill in their defaults."""

    _fields_ = (
        ("size", ctypes.c_size_t), ("magic", ctypes.c_uint), ("version", ctypes.c_uint),
        ("blocking", ctypes.c_int), ("cga_cluster_size", ctypes.c_int),
        ("min_ctas", ctypes.c_int), ("max_ctas", ctypes.c_int), ("net_name", ctypes.c_char_p),
    )  # fmt: skip


_MAGIC: Final = 0xCAFE_BEEF
_CONFIG_VERSION: Final = 21_700
_UNSET: Final = -(1 << 31)


def find() -> ctypes.CDLL:
    """Raises TransferError where there is none."""
    paths = [str(path / "lib" / "libnccl.so.2") for path in _brought_by_torch()]
    for path in (*paths, "libnccl.so.2"):
        try:
            return ctypes.CDLL(path)
        except OSError:
            continue
    raise TransferError("no libnccl.so.2: neither torch nor the system has one")


def _brought_by_torch() -> list[Path]:
    try:
        spec = importlib.util.find_spec("nvidia.nccl")
    except ModuleNotFoundError:
        return []
    return [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []


def _declare(library: ctypes.CDLL) -> None:
    at, size, number, text = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_char_p
    library.ncclGetErrorString.restype = library.ncclGetLastError.restype = text
    library.ncclGetLastError.argtypes = library.ncclCommAbort.argtypes = [at]
    library.ncclCommGetAsyncError.argtypes = [at, at]
    library.ncclCommInitRankConfig.argtypes = [at, number, _UniqueId, number, at]
    for call in (library.ncclSend, library.ncclRecv):
        call.argtypes = [at, size, number, number, at, at]


def version_text(code: int) -> str:
    """2.27.3 of 22703."""
    return f"{code // 10_000}.{code // 100 % 100}.{code % 100}"


class Nccl:
    """The library on one device."""

    def __init__(
        self, bind: Callable[[], None], *, library: ctypes.CDLL | None = None, max_ctas: int = 0,
        patience_s: float = PATIENCE_S,
    ) -> None:  # fmt: skip
        """`bind` makes the device current for the calling thread. `max_ctas`: most thread blocks
        a communicator runs, NCCL's choice with 0; a GPU that two ranks share needs few."""
        self._library = library or find()
        self.patience_s = patience_s
        self._bind = bind
        self._max_ctas = max_ctas
        _declare(self._library)
        code = ctypes.c_int()
        self.check(self._library.ncclGetVersion(ctypes.byref(code)), "ncclGetVersion")
        if code.value < _LEAST_VERSION:
            old = version_text(code.value)
            raise TransferError(f"NCCL {old} is older than {version_text(_LEAST_VERSION)}")
        self._code = code.value
        self.version = version_text(code.value)

    def why_not(self, *, ours: str, theirs: str) -> str:
        if ours != theirs:
            return ""
        if self._code < _SHARED_GPU_VERSION:
            return f"both are on GPU {ours}, which NCCL {self.version} cannot share"
        if os.environ.get(_SHARED_GPU) != "1":
            return f"both are on GPU {ours}, and {_SHARED_GPU} is not 1"
        return ""

    def unique_id(self) -> bytes:
        made = _UniqueId()
        self.check(self._library.ncclGetUniqueId(ctypes.byref(made)), "ncclGetUniqueId")
        return bytes(made)

    def join(self, unique_id: bytes, *, rank: int) -> "NcclCommunicator":
        if len(unique_id) != UNIQUE_ID_BYTES or rank not in (0, 1):
            raise TransferError(f"no unique id: {len(unique_id)} bytes, rank {rank}")
        self._bind()
        config = _Config(
            ctypes.sizeof(_Config), _MAGIC, _CONFIG_VERSION, 0, _UNSET, _UNSET,
            self._max_ctas or _UNSET, None,
        )  # fmt: skip
        handle = ctypes.c_void_p()
        result = self._library.ncclCommInitRankConfig(
            ctypes.byref(handle), 2, _UniqueId.from_buffer_copy(unique_id), rank,
            ctypes.byref(config),
        )  # fmt: skip
        self.check(result, "ncclCommInitRankConfig", handle)
        return NcclCommunicator(self, self._library, self._bind, handle, peer=1 - rank)

    def check(self, result: int, what: str, handle: ctypes.c_void_p | None = None) -> None:
        """Raise PeerLost for what is neither success nor under way."""
        if result in (_SUCCESS, _IN_PROGRESS):
            return
        reason = (self._library.ncclGetErrorString(result) or b"").decode(errors="replace")
        last = (self._library.ncclGetLastError(handle) or b"").decode(errors="replace")
        raise PeerLost(f"{what}: {reason} ({result}) {last}".rstrip())


@dataclass(frozen=True, slots=True, eq=False)
class NcclCommunicator:
    nccl: Nccl
    library: ctypes.CDLL
    bind: Callable[[], None]
    handle: ctypes.c_void_p
    peer: int

    def settled(self) -> bool:
        state = ctypes.c_int()
        result = self.library.ncclCommGetAsyncError(self.handle, ctypes.byref(state))
        self.nccl.check(result, "ncclCommGetAsyncError", self.handle)
        self.nccl.check(state.value, "the communicator failed", self.handle)
        return state.value == _SUCCESS

    def send(self, spans: Sequence[Span], stream: Stream) -> None:
        self._begin("ncclSend", spans, stream)

    def receive(self, spans: Sequence[Span], stream: Stream) -> None:
        self._begin("ncclRecv", spans, stream)

    def _begin(self, name: str, spans: Sequence[Span], stream: Stream) -> None:
        self.bind()
        self.nccl.check(self.library.ncclGroupStart(), "ncclGroupStart")
        try:
            for span in spans:
                result = getattr(self.library, name)(
                    span.address, span.num_bytes, _UINT8, self.peer, self.handle, stream.handle
                )
                self.nccl.check(result, name, self.handle)
        finally:  # a group that was not ended would take in whatever this thread calls next
            ended = self.library.ncclGroupEnd()
        self.nccl.check(ended, "ncclGroupEnd", self.handle)

    def abort(self) -> None:
        self.bind()
        result = self.library.ncclCommAbort(self.handle)
        self.nccl.check(result, "ncclCommAbort")
