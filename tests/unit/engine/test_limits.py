"""How much an engine takes on at a time unless it is told: by its device."""

import pytest

from engine.limits import DeviceSize, EngineLimits, default_limits

L4 = DeviceSize(memory_bytes=22 << 30, num_multiprocessors=58)
A100_40 = DeviceSize(memory_bytes=39 << 30, num_multiprocessors=108)
L40S = DeviceSize(memory_bytes=44 << 30, num_multiprocessors=142)
H200 = DeviceSize(memory_bytes=139 << 30, num_multiprocessors=132)


@pytest.mark.parametrize(
    ("device", "decodes", "max_running", "token_budget", "why"),
    [
        (None, True, 64, 512, "a CPU"),
        (None, False, 64, 512, "a CPU"),
        (L4, True, 128, 2048, "a GPU of 22 GiB"),
        (A100_40, True, 256, 2048, "a GPU of 39 GiB and 108 multiprocessors"),
        (L40S, False, 256, 2048, "a GPU of 44 GiB and 142 multiprocessors"),
        (H200, True, 256, 4096, "a GPU of 139 GiB and 132 multiprocessors"),
        (
            *(H200, False, 256, 8192),
            "a GPU of 139 GiB and 132 multiprocessors, and no decode to keep waiting",
        ),
    ],
)
def test_a_device_has_limits_of_its_own_with_their_reason(
    device: DeviceSize | None, decodes: bool, max_running: int, token_budget: int, why: str
) -> None:
    chosen = default_limits(device, decodes=decodes)
    assert (chosen.max_running, chosen.token_budget) == (max_running, token_budget)
    assert chosen.why == why


@pytest.mark.parametrize(
    ("given", "max_running", "token_budget"),
    [
        ({"max_running": 7}, 7, 512),
        ({"max_running": 512}, 512, 1024),
        ({"token_budget": 64}, 32, 64),
        ({"token_budget": 1}, 1, 1),
        ({"max_running": 5, "token_budget": 9}, 5, 9),
    ],
)
def test_what_is_set_is_kept_and_the_other_number_goes_with_it(
    given: dict[str, int], max_running: int, token_budget: int
) -> None:
    chosen = default_limits(None, decodes=True, **given)
    assert (chosen.max_running, chosen.token_budget) == (max_running, token_budget)
    assert chosen.why == f"{' and '.join(given)} as set, else a CPU"


def test_numbers_that_contradict_each_other_are_refused() -> None:
    chosen = default_limits(None, decodes=True, max_running=9, token_budget=9)
    with pytest.raises(ValueError, match="token_budget is 9 and max_running 9"):
        EngineLimits(
            max_running=chosen.max_running, max_waiting=1, token_budget=chosen.token_budget,
            max_context_tokens=9,
        )  # fmt: skip
