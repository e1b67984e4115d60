"""The doctor's eyes: what it makes of the kernel's words, and what it sees here."""

import os
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from controlplane.checkout import ROOT
from controlplane.doctor import probe
from controlplane.doctor.facts import GpuFacts
from controlplane.doctor.gpu import ask_driver, nccl_text
from protocol.process.kernels.c_kernels import compiler as find_compiler
from tools.python_path import python_path


@pytest.mark.parametrize(
    ("words", "word"), [("always [madvise] never", "madvise"), ("[never]", "never"), ("", "")]
)
def test_the_chosen_word_is_the_one_in_brackets(words: str, word: str) -> None:
    assert probe.bracketed(words) == word


def test_a_capability_is_a_bit_of_the_kernels_mask() -> None:
    assert probe.has_capability("0000000000004000", 14)
    assert not probe.has_capability("00000000a80425fb", 14)


@pytest.mark.parametrize(("ranges", "count"), [("0", 1), ("0-1,4", 3), ("", 1)])
def test_nodes_are_counted_from_the_kernels_list(ranges: str, count: int) -> None:
    assert probe.num_listed(ranges) == count


def test_this_machine_can_be_looked_at() -> None:
    facts = probe.read_facts(transports=("shm", "tcp"), gpu=GpuFacts())
    assert facts.host and facts.boot and facts.network_namespace.startswith("net:[")
    assert facts.memory.free_bytes > 0
    assert facts.memory.memfd_error == ""
    assert facts.compute.native.endswith(".so")
    assert 1 <= facts.compute.num_cores <= facts.compute.num_cores_of_machine


def test_asking_for_gpus_always_answers_and_says_why_there_are_none() -> None:
    facts = ask_driver(timeout_s=30.0)
    assert bool(facts.names) != bool(facts.error)


def test_a_driver_that_does_not_answer_in_time_is_a_reason_not_a_hang() -> None:
    facts = ask_driver(timeout_s=0.001)
    assert "did not answer" in facts.error


FAKE_DRIVER = r"""
#include <stdio.h>
int cuInit(unsigned flags) { return FAILS ? 999 : 0; }
int cuDeviceGetCount(int *count) { *count = 2; return 0; }
int cuDeviceGet(int *device, int index) { *device = index; return 0; }
int cuDeviceGetName(char *name, int size, int device) {
    return snprintf(name, size, "Fake %d", device) < 0;
}
int cuDeviceCanAccessPeer(int *can, int one, int other) { *can = one > other; return 0; }
"""
FAKE_NCCL = "int ncclGetVersion(int *version) { *version = 23004; return 0; }"


def ask_fake(folder: Path, *, fails: bool) -> GpuFacts:
    """What is made of a driver that answers as this one does."""
    compiler = find_compiler()
    if compiler is None:
        pytest.skip("no C compiler")
    sources = {"libcuda.so.1": FAKE_DRIVER, "libnccl.so.2": FAKE_NCCL}
    for name, source in sources.items():
        command = [compiler, "-shared", "-fPIC", f"-DFAILS={int(fails)}", "-x", "c", "-"]
        subprocess.run([*command, "-o", str(folder / name)], input=source.encode(), check=True)
    asked = subprocess.run(
        [sys.executable, "-m", "controlplane.doctor.gpu"],
        env={**os.environ, "LD_LIBRARY_PATH": str(folder), "PYTHONPATH": python_path(ROOT)},
        capture_output=True,
        check=True,
        timeout=30,
    )
    return msgspec.json.decode(asked.stdout, type=GpuFacts)


def test_gpus_their_names_and_who_cannot_reach_whom_are_read_from_the_driver(
    tmp_path: Path,
) -> None:
    facts = ask_fake(tmp_path, fails=False)
    assert facts.names == ("Fake 0", "Fake 1")
    assert facts.no_peer == ((0, 1),)
    assert facts.error == ""
    assert re.fullmatch(r"\d+\.\d+\.\d+", facts.nccl)


def test_a_driver_in_trouble_is_a_reason(tmp_path: Path) -> None:
    facts = ask_fake(tmp_path, fails=True)
    assert (facts.names, facts.error) == ((), "cuInit answers 999")


def test_nccl_versions_are_read_as_nccl_writes_them() -> None:
    assert (nccl_text(23004), nccl_text(2804)) == ("2.30.4", "2.8.4")
