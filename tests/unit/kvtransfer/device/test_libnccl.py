"""NCCL as far as it goes without a GPU: a library of the same functions that only tells what it
was called with, and the real one where there is one."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
from support.fake_driver import FakeStream

from kvtransfer.device.libnccl import Nccl, version_text
from kvtransfer.native.copy import Span
from protocol.errors import PeerLost, TransferError

STUB = """
#include <limits.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
typedef struct { char internal[128]; } Id;
typedef struct {
  size_t size; unsigned magic, version; int blocking, cga, min_ctas, max_ctas; const char *net;
} Config;
static char told[4096];
static int version = 23003, state = 7;
#define TELL(...) snprintf(told + strlen(told), sizeof told - strlen(told), __VA_ARGS__)
void stub_is(int as_version, int as_state) { version = as_version; state = as_state; told[0] = 0; }
const char *stub_told(void) { return told; }
int ncclGetVersion(int *out) { *out = version; return 0; }
int ncclGetUniqueId(Id *id) {
  for (int i = 0; i < 128; i++) id->internal[i] = (char)(i + 1);
  return 0;
}
const char *ncclGetErrorString(int result) { return result == 6 ? "remote error" : "broken"; }
const char *ncclGetLastError(void *comm) { return comm ? "the other rank is gone" : ""; }
int ncclCommInitRankConfig(void **comm, int ranks, Id id, int rank, Config *config) {
  *comm = (void *)0x7f0011223344;
  TELL("init %d of %d id %d..%d ", rank, ranks, id.internal[0], id.internal[127]);
  TELL("size %zu magic %x version %d blocking %d ", config->size, config->magic,
       config->version, config->blocking);
  TELL("ctas %d %d\\n", config->min_ctas == INT_MIN, config->max_ctas);
  return 7;
}
int ncclCommGetAsyncError(void *comm, int *out) {
  *out = comm == (void *)0x7f0011223344 ? state : 5;
  return 0;
}
int ncclSend(const void *at, size_t num, int type, int peer, void *comm, void *stream) {
  if (num == 13) return 6;
  TELL("send %p %zu %d to %d on %p %p\\n", at, num, type, peer, comm, stream);
  return 0;
}
int ncclRecv(void *at, size_t num, int type, int peer, void *comm, void *stream) {
  TELL("receive %p %zu %d from %d on %p %p\\n", at, num, type, peer, comm, stream);
  return 7;
}
int ncclGroupStart(void) { TELL("group\\n"); return 0; }
int ncclGroupEnd(void) { TELL("launched\\n"); return 7; }
int ncclCommAbort(void *comm) { TELL("abort %p\\n", comm); return 0; }
"""
SUCCESS, REMOTE_ERROR, IN_PROGRESS = 0, 6, 7
BIG_SPAN = Span(0x7F12_3456_7890, 5 << 32)


class Stub:
    def __init__(self, folder: Path, compiler: str) -> None:
        (folder / "stub.c").write_text(STUB)
        path = str(folder / "libnccl.so")
        command = [compiler, "-shared", "-fPIC", "-o", path, str(folder / "stub.c")]
        subprocess.run(command, check=True, timeout=60)
        self.library = ctypes.CDLL(path)
        self.library.stub_told.restype = ctypes.c_char_p
        self.be()

    def be(self, *, version: int = 23_003, state: int = IN_PROGRESS) -> None:
        self.library.stub_is(version, state)

    @property
    def told(self) -> list[str]:
        return bytes(self.library.stub_told()).decode().splitlines()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Stub:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    return Stub(tmp_path_factory.mktemp("nccl"), compiler)


@pytest.fixture
def stub(built: Stub) -> Stub:
    built.be()
    return built


@pytest.fixture
def nccl(stub: Stub) -> Nccl:
    return Nccl(lambda: None, library=stub.library, max_ctas=2)


def test_a_version_reads_as_people_write_it() -> None:
    assert [version_text(code) for code in (21_800, 22_703, 23_203)] == [
        "2.18.0", "2.27.3", "2.32.3"
    ]  # fmt: skip


def test_an_old_library_is_refused(stub: Stub) -> None:
    stub.be(version=21_703)
    with pytest.raises(TransferError, match=r"2\.17\.3 is older than 2\.18\.0"):
        Nccl(lambda: None, library=stub.library)


def test_two_ranks_share_a_gpu_when_version_and_environment_say_so(
    stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NCCL_MULTI_RANK_GPU_ENABLE", "1")
    assert Nccl(lambda: None, library=stub.library).why_not(ours="a", theirs="a") == ""
    stub.be(version=22_900)
    old = Nccl(lambda: None, library=stub.library)
    assert "NCCL 2.29.0 cannot share" in old.why_not(ours="a", theirs="a")
    assert old.why_not(ours="a", theirs="b") == ""
    monkeypatch.delenv("NCCL_MULTI_RANK_GPU_ENABLE")
    stub.be()
    unsaid = Nccl(lambda: None, library=stub.library)
    assert "is not 1" in unsaid.why_not(ours="a", theirs="a")


def test_a_communicator_is_joined_without_waiting_and_settles(stub: Stub, nccl: Nccl) -> None:
    joined = nccl.join(nccl.unique_id(), rank=1)
    assert stub.told == [
        "init 1 of 2 id 1..-128 size 40 magic cafebeef version 21700 blocking 0 ctas 1 2"
    ]
    assert not joined.settled()
    stub.be(state=SUCCESS)
    assert joined.settled()


def test_addresses_sizes_and_streams_arrive_whole(stub: Stub, nccl: Nccl) -> None:
    joined, stream = nccl.join(nccl.unique_id(), rank=0), FakeStream(0x5555_6666_7777)
    stub.be(state=SUCCESS)
    joined.send([BIG_SPAN, Span(BIG_SPAN.address, 32)], stream)
    joined.receive([Span(BIG_SPAN.address, 64)], stream)
    joined.abort()
    at = "on 0x7f0011223344 0x555566667777"
    assert stub.told == [
        "group",
        f"send 0x7f1234567890 21474836480 1 to 1 {at}",
        f"send 0x7f1234567890 32 1 to 1 {at}",
        "launched",
        "group",
        f"receive 0x7f1234567890 64 1 from 1 {at}",
        "launched",
        "abort 0x7f0011223344",
    ]


def test_a_group_is_ended_even_when_a_send_in_it_is_refused(stub: Stub, nccl: Nccl) -> None:
    joined, stream = nccl.join(nccl.unique_id(), rank=0), FakeStream(1)
    stub.be(state=SUCCESS)
    with pytest.raises(PeerLost, match="remote error"):
        joined.send([Span(BIG_SPAN.address, 13)], stream)
    assert stub.told == ["group", "launched"]


def test_an_error_reported_later_is_a_lost_peer(stub: Stub, nccl: Nccl) -> None:
    joined = nccl.join(nccl.unique_id(), rank=0)
    stub.be(state=REMOTE_ERROR)
    with pytest.raises(PeerLost, match=r"remote error \(6\) the other rank is gone"):
        joined.settled()


def test_an_id_of_another_size_is_refused(nccl: Nccl) -> None:
    with pytest.raises(TransferError, match="no unique id"):
        nccl.join(b"short", rank=0)


def test_the_real_library_says_its_version_and_makes_ids() -> None:
    try:
        real = Nccl(lambda: None)
    except TransferError as error:
        pytest.skip(str(error))
    assert tuple(map(int, real.version.split("."))) >= (2, 18)
    assert len({real.unique_id() for _ in range(3)}) == 3
