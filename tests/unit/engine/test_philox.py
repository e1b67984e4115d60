import pytest

from engine.philox import Words, philox4x32, uniform


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # kat_vectors of the Random123 library
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
            (0xFFFFFFFF, 0xFFFFFFFF),
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_it_gives_the_published_vectors(
    counter: Words, key: tuple[int, int], expected: Words
) -> None:
    assert philox4x32(counter, key) == expected


def test_numbers_fill_the_unit_interval_evenly() -> None:
    """The mean of 10,000 even numbers is within five standard deviations of a half."""
    numbers = [uniform(seed=1, position=position) for position in range(10_000)]
    assert all(0 <= number < 1 for number in numbers)
    assert abs(sum(numbers) / len(numbers) - 0.5) < 5 / (12 * len(numbers)) ** 0.5
    assert len(set(numbers)) == len(numbers)


def test_negative_and_large_seeds_are_seeds_too() -> None:
    numbers = {uniform(seed=seed, position=3) for seed in (-1, 1, 2**63, 2**64 - 2)}
    assert len(numbers) == 4
