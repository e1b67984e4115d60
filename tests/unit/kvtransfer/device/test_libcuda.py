"""How the CUDA driver API is called, by a library of the same functions that only tells.

Shows that addresses, sizes and the handle, which goes by value, arrive whole; nothing of CUDA.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.gpu import ENVIRONMENT

WITHIN_S = 60
STUB = """
#include <stdint.h>
#include <stdio.h>
#include <string.h>
typedef struct { unsigned char reserved[64]; } Handle;
static const uint64_t AT = 0x7f1234567890;
int cuInit(unsigned flags) { return (int)flags; }
int cuDevicePrimaryCtxRetain(void **context, int device) {
  *context = (void *)0x7fedcba98760; return device;
}
int cuCtxSetCurrent(void *context) { printf("current %p\\n", context); return 0; }
int cuMemAlloc_v2(uint64_t *address, size_t size) {
  printf("alloc %zu\\n", size); *address = AT; return size > 1u << 30 ? 2 : 0;
}
int cuMemsetD8Async(uint64_t address, unsigned char byte, size_t size, void *stream) {
  printf("set %lx %d %zu %p\\n", address, byte, size, stream); return 0;
}
int cuStreamSynchronize(void *stream) { printf("wait %p\\n", stream); return 0; }
int cuMemFree_v2(uint64_t address) { printf("free %lx\\n", address); return 0; }
int cuIpcGetMemHandle(Handle *handle, uint64_t address) {
  for (int i = 0; i < 64; i++) handle->reserved[i] = i + (address == AT); return 0;
}
int cuIpcOpenMemHandle_v2(uint64_t *address, Handle handle, unsigned flags) {
  printf("open %d..%d flags %u\\n", handle.reserved[0], handle.reserved[63], flags);
  *address = AT + 256; return handle.reserved[0] == 99 ? 217 : 0;
}
int cuIpcCloseMemHandle(uint64_t address) { printf("close %lx\\n", address); return 0; }
int cuMemGetAddressRange_v2(uint64_t *base, size_t *size, uint64_t address) {
  *base = address - 256; *size = (size_t)5 << 32; return 0;
}
int cuMemHostRegister_v2(void *host, size_t size, unsigned flags) {
  printf("register %p %zu flags %u\\n", host, size, flags); return size > 1u << 30 ? 2 : 0;
}
int cuMemHostUnregister(void *host) { printf("unregister %p\\n", host); return 0; }
int cuMemcpyDtoHAsync_v2(void *host, uint64_t from, size_t size, void *stream) {
  printf("down %p %lx %zu %p\\n", host, from, size, stream); return 0;
}
int cuMemcpyHtoDAsync_v2(uint64_t into, void *host, size_t size, void *stream) {
  printf("up %lx %p %zu %p\\n", into, host, size, stream); return 0;
}
int cuGetErrorString(int error, const char **text) {
  *text = error == 217 ? "peer access is not supported" : "out of memory"; return 0;
}
"""
CALLS = """
from kvtransfer.device import libcuda
from protocol.errors import TransferError
libcuda.make_current(libcuda.primary_context(0))
address = libcuda.allocate(1 << 30, 0x5555_6666_7777)
handle = libcuda.export(address)
assert handle == bytes(range(1, 65)), handle
theirs = libcuda.open_exported(handle)
assert libcuda.allocation_bytes(theirs) == (5 << 32) - 256
libcuda.close_exported(theirs)
libcuda.free(address)
host = 0x7eee_1111_2000
libcuda.register(host, 5 << 20)
libcuda.download(host, address, 3 << 20, 0x5555_6666_7777)
libcuda.upload(address, host, 7, 0x5555_6666_7777)
libcuda.unregister(host)
for call in (lambda: libcuda.allocate(1 << 31, 0), lambda: libcuda.open_exported(b"c" * 64)):
    try:
        call()
    except TransferError as error:
        print(error, flush=True)
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
    told = sorted(run(tmp_path).splitlines())
    assert told == sorted([
        "current 0x7fedcba98760", "alloc 1073741824",
        "set 7f1234567890 0 1073741824 0x555566667777",
        "wait 0x555566667777", "open 1..64 flags 1", "close 7f1234567990", "free 7f1234567890",
        "register 0x7eee11112000 5242880 flags 1", "unregister 0x7eee11112000",
        "down 0x7eee11112000 7f1234567890 3145728 0x555566667777",
        "up 7f1234567890 0x7eee11112000 7 0x555566667777",
        "alloc 2147483648", "cuMemAlloc_v2: out of memory (2)", "open 99..99 flags 1",
        "cuIpcOpenMemHandle_v2: peer access is not supported (217)",
    ])  # fmt: skip
