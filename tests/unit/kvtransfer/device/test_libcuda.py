"""How the CUDA driver API is called, by a library of the same functions that only tells.

Shows that addresses, sizes, handles and structures arrive whole; nothing of CUDA.
"""

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.gpu import ENVIRONMENT

from kvtransfer.device import virtual_memory

WITHIN_S = 60
STUB = """
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <fcntl.h>
typedef struct { int type, id; } Location;
typedef struct {
  int type, handles; Location location; void *windows;
  struct { unsigned char compression, rdma; unsigned short usage; unsigned char rest[4]; } flags;
} Properties;
typedef struct { Location location; int flags; } Access;
_Static_assert(sizeof(Properties) == 32 && sizeof(Access) == 12, "as in cuda.h");
static const uint64_t AT = 0x7f1234567000, HANDLE = 0xfedcba9876543210;
int cuInit(unsigned flags) { return (int)flags; }
int cuDevicePrimaryCtxRetain(void **context, int device) {
  *context = (void *)0x7fedcba98760; return device - 1;
}
int cuCtxSetCurrent(void *context) { printf("current %p\\n", context); return 0; }
int cuDeviceGetAttribute(int *value, int number, int device) {
  *value = number == 103 && device == 1; return 0;
}
int cuMemGetAllocationGranularity(size_t *grain, const Properties *p, int option) {
  printf("grain %d %d %d %d %d\\n", p->type, p->handles, p->location.type, p->location.id, option);
  *grain = 2u << 20; return 0;
}
int cuMemCreate(uint64_t *handle, size_t size, const Properties *p, unsigned long long flags) {
  printf("create %zu %d %d %llu\\n", size, p->handles, p->flags.rdma, flags);
  *handle = HANDLE; return size > 1ull << 40 ? 2 : 0;
}
int cuMemAddressReserve(uint64_t *at, size_t size, size_t align, uint64_t wish,
                        unsigned long long flags) {
  printf("reserve %zu %zu %lx %llu\\n", size, align, wish, flags); *at = AT; return 0;
}
int cuMemMap(uint64_t at, size_t size, size_t offset, uint64_t handle, unsigned long long flags) {
  printf("map %lx %zu %zu %lx %llu\\n", at, size, offset, handle, flags); return 0;
}
int cuMemSetAccess(uint64_t at, size_t size, const Access *a, size_t count) {
  printf("access %lx %zu %d %d %d %zu\\n", at, size, a->location.type, a->location.id, a->flags,
         count);
  return a->location.id == 2 ? 217 : 0;
}
int cuMemUnmap(uint64_t at, size_t size) { printf("unmap %lx %zu\\n", at, size); return 0; }
int cuMemAddressFree(uint64_t at, size_t size) {
  printf("unreserve %lx %zu\\n", at, size); return 0;
}
int cuMemRelease(uint64_t handle) { printf("release %lx\\n", handle); return 0; }
int cuMemExportToShareableHandle(void *into, uint64_t handle, int type, unsigned long long flags) {
  printf("export %lx %d %llu\\n", handle, type, flags);
  *(int *)into = open("/dev/null", O_RDONLY); return 0;
}
int cuMemImportFromShareableHandle(uint64_t *handle, void *fd, int type) {
  printf("import %ld %d\\n", (long)(intptr_t)fd, type); *handle = HANDLE; return 0;
}
int cuMemsetD8Async(uint64_t address, unsigned char byte, size_t size, void *stream) {
  printf("set %lx %d %zu %p\\n", address, byte, size, stream); return 0;
}
int cuStreamSynchronize(void *stream) { printf("wait %p\\n", stream); return 0; }
int cuCtxGetStreamPriorityRange(int *least, int *greatest) { *least = 0; *greatest = -5; return 0; }
int cuStreamCreateWithPriority(void **stream, unsigned flags, int priority) {
  printf("stream %u %d\\n", flags, priority); *stream = (void *)0x555566667777; return 0;
}
int cuStreamDestroy_v2(void *stream) { printf("no stream %p\\n", stream); return 0; }
int cuEventCreate(void **event, unsigned flags) {
  printf("event %u\\n", flags); *event = (void *)0x7ffffffffff0; return 0;
}
int cuEventRecord(void *event, void *stream) { printf("record %p %p\\n", event, stream); return 0; }
int cuEventQuery(void *event) { static int asked; return asked++ ? 0 : 600; }
int cuStreamWaitEvent(void *stream, void *event, unsigned flags) {
  printf("%p waits for %p %u\\n", stream, event, flags); return 0;
}
int cuEventDestroy_v2(void *event) { printf("no event %p\\n", event); return 0; }
int cuMemHostAlloc(void **at, size_t size, unsigned flags) {
  printf("pin %zu %u\\n", size, flags); *at = (void *)0x7eeeeeeee000; return 0;
}
int cuMemHostRegister_v2(void *at, size_t size, unsigned flags) {
  printf("lock %p %zu %u\\n", at, size, flags); return 0;
}
int cuMemHostUnregister(void *at) { printf("unlock %p\\n", at); return 0; }
int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t size, void *stream) {
  printf("up %lx %p %zu %p\\n", to, from, size, stream); return 0;
}
int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t size, void *stream) {
  printf("down %p %lx %zu %p\\n", to, from, size, stream); return 0;
}
int cuDeviceGetCount(int *count) { *count = 2; return 0; }
int cuDeviceGetUuid_v2(unsigned char *uuid, int device) { memset(uuid, 17 + device, 16); return 0; }
int cuDeviceCanAccessPeer(int *can, int device, int peer) { *can = device < peer; return 0; }
int cuGetErrorString(int error, const char **text) {
  *text = error == 217 ? "peer access is not supported" : "out of memory"; return 0;
}
"""
CALLS = """
import os
from kvtransfer.device import libcuda, virtual_memory
from protocol.errors import TransferError

libcuda.make_current(libcuda.primary_context(1))
num_bytes = virtual_memory.rounded((5 << 32) - 1, 1)
handle = virtual_memory.create(num_bytes, 1)
address = virtual_memory.map_memory(handle, num_bytes, 1)
fd = virtual_memory.export_fd(handle)
os.close(fd)
assert virtual_memory.import_fd(1000) == handle
virtual_memory.unmap(address, num_bytes)
virtual_memory.release(handle)
stream = libcuda.create_stream()
libcuda.clear(address, 1 << 33, stream)
event = libcuda.record_event(stream)
assert [libcuda.has_happened(event) for _ in range(2)] == [False, True]
libcuda.wait_for_event(stream, event)
libcuda.destroy_event(event)
pinned = libcuda.allocate_pinned(1 << 21)
libcuda.register(pinned, 1 << 33)
libcuda.unregister(pinned)
libcuda.upload(address, pinned, 1 << 33, stream)
libcuda.download(pinned, address, 1 << 33, stream)
libcuda.wait_for_stream(stream)
libcuda.destroy_stream(stream)
print(*libcuda.visible_devices(), libcuda.can_access(0, 1), libcuda.can_access(1, 0), flush=True)
for call in (
    lambda: virtual_memory.create(1 << 41, 0),
    lambda: virtual_memory.map_memory(7, 1 << 21, 2),
):
    try:
        call()
    except TransferError as error:
        print(error, flush=True)
"""
TOLD = """
current 0x7fedcba98760
grain 1 1 1 1 1
create 21474836480 1 0 0
reserve 21474836480 0 0 0
map 7f1234567000 21474836480 0 fedcba9876543210 0
access 7f1234567000 21474836480 1 1 3 1
export fedcba9876543210 1 0
import 1000 1
unmap 7f1234567000 21474836480
unreserve 7f1234567000 21474836480
release fedcba9876543210
stream 1 0
set 7f1234567000 0 8589934592 0x555566667777
event 2
record 0x7ffffffffff0 0x555566667777
0x555566667777 waits for 0x7ffffffffff0 0
no event 0x7ffffffffff0
pin 2097152 1
lock 0x7eeeeeeee000 8589934592 1
unlock 0x7eeeeeeee000
up 7f1234567000 0x7eeeeeeee000 8589934592 0x555566667777
down 0x7eeeeeeee000 7f1234567000 8589934592 0x555566667777
wait 0x555566667777
no stream 0x555566667777
11111111-1111-1111-1111-111111111111 12121212-1212-1212-1212-121212121212 True False
create 2199023255552 0 0 0
cuMemCreate: out of memory (2)
reserve 2097152 0 0 0
map 7f1234567000 2097152 0 7 0
access 7f1234567000 2097152 1 2 3 1
unmap 7f1234567000 2097152
unreserve 7f1234567000 2097152
cuMemSetAccess: peer access is not supported (217)
"""


def run(folder: Path) -> str:
    """What the calls print, by the library in `folder`."""
    environment = {**ENVIRONMENT, "LD_LIBRARY_PATH": str(folder)}
    command = [sys.executable, "-c", CALLS]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=WITHIN_S, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_arguments_arrive_as_the_driver_takes_them(tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    (tmp_path / "stub.c").write_text(STUB)
    goal = str(tmp_path / "libcuda.so.1")
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-o", goal, str(tmp_path / "stub.c")],
        check=True, timeout=WITHIN_S,
    )  # fmt: skip
    assert sorted(run(tmp_path).split("\n")) == sorted([*TOLD.strip("\n").split("\n"), ""])


def test_structures_have_the_sizes_of_the_header() -> None:
    sizes = {
        virtual_memory.Location: 8, virtual_memory.AllocationFlags: 8,
        virtual_memory.AllocationProperties: 32, virtual_memory.AccessDescription: 12,
    }  # fmt: skip
    assert {kind: ctypes.sizeof(kind) for kind in sizes} == sizes
    assert virtual_memory.AllocationProperties.location.offset == 8
    assert virtual_memory.AllocationProperties.flags.offset == 24
