from protocol.process.backoff import Backoff


def test_the_first_restart_comes_after_a_tenth_of_a_second() -> None:
    assert Backoff().delay_s(previous_s=0, lived_s=0) == 0.1


def test_each_further_death_doubles_the_delay_up_to_five_seconds() -> None:
    delays = [0.0]
    for _ in range(8):
        delays.append(Backoff().delay_s(previous_s=delays[-1], lived_s=0.5))
    assert delays[1:] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]


def test_a_child_that_lived_long_starts_over_quickly() -> None:
    assert Backoff().delay_s(previous_s=5.0, lived_s=11) == 0.1
