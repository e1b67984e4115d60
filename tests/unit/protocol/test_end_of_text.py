"""What ends a text, whoever asks: the engine's scheduler, a worker's text, a router's replay."""

import pytest

from protocol.messages import FinishReason, Sampling

EOS = (7, 8)


def reason(token_id: int, num_tokens: int, **rule: object) -> FinishReason | None:
    sampling = Sampling(seed=1, **{"max_tokens": 9, **rule})  # type: ignore[arg-type]
    return sampling.reason_to_end(token_id, num_tokens, sampling.ending_ids(EOS))


@pytest.mark.parametrize("token_id", EOS)
def test_any_eos_token_ends_a_text_unless_it_is_ignored(token_id: int) -> None:
    assert reason(token_id, 1) == "stop"
    assert reason(token_id, 1, ignore_eos=True) is None


def test_a_stop_token_ends_a_text_even_when_eos_is_ignored() -> None:
    assert reason(3, 1, stop_token_ids=(3,), ignore_eos=True) == "stop"


def test_nothing_but_its_length_ends_a_text_within_min_tokens() -> None:
    assert reason(7, 2, min_tokens=2) is None
    assert reason(7, 3, min_tokens=2) == "stop"
    assert reason(7, 2, min_tokens=2, max_tokens=2) == "length"


def test_a_text_ends_with_its_last_token_and_a_stop_there_is_a_stop() -> None:
    assert [reason(1, 8), reason(1, 9)] == [None, "length"]
    assert reason(7, 9) == "stop"
