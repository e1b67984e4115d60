"""The doctor's eyes: what it makes of the kernel's words, and what it sees here."""

import pytest

from controlplane.doctor import gpu, probe
from controlplane.doctor.facts import GpuFacts


@pytest.mark.parametrize(
    ("words", "word"), [("always [madvise] never", "madvise"), ("[never]", "never"), ("", "")]
)
def test_the_chosen_word_is_the_one_in_brackets(words: str, word: str) -> None:
    assert probe.chosen(words) == word


def test_a_capability_is_a_bit_of_the_kernels_mask() -> None:
    assert probe.has_capability("0000000000004000", 14)
    assert not probe.has_capability("00000000a80425fb", 14)


@pytest.mark.parametrize(
    ("cpu_max", "cores"), [("150000 100000", 1.5), ("max 100000", None), ("", None)]
)
def test_a_cpu_quota_is_said_in_cores(cpu_max: str, cores: float | None) -> None:
    assert probe.quota(cpu_max) == cores


@pytest.mark.parametrize(("ranges", "count"), [("0", 1), ("0-1,4", 3), ("", 1)])
def test_nodes_are_counted_from_the_kernels_list(ranges: str, count: int) -> None:
    assert probe.num_listed(ranges) == count


def test_this_machine_can_be_looked_at() -> None:
    facts = probe.facts(transports=("shm", "tcp"), gpu=GpuFacts())
    assert facts.host and facts.boot and facts.network_namespace.startswith("net:[")
    assert facts.memory.free_bytes > 0
    assert facts.memory.memfd_error == ""
    assert facts.compute.native.endswith(".so")
    assert 1 <= facts.compute.num_cores <= facts.compute.num_cores_of_machine


def test_asking_for_gpus_always_answers_and_says_why_there_are_none() -> None:
    facts = gpu.ask(timeout_s=30.0)
    assert bool(facts.names) != bool(facts.error)


def test_a_driver_that_does_not_answer_in_time_is_a_reason_not_a_hang() -> None:
    facts = gpu.ask(timeout_s=0.001)
    assert "did not answer" in facts.error
