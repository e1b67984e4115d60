import torch

from engine.models.rope import Rope, frequencies, rotations


def test_default_frequencies_fall_geometrically_from_one() -> None:
    got = frequencies(Rope(theta=10_000.0), head_dim=8)
    assert torch.allclose(got, torch.tensor([1.0, 0.1, 0.01, 0.001]))


def test_llama3_keeps_short_waves_and_slows_long_ones() -> None:
    rope = Rope(kind="llama3", theta=500_000.0, factor=8.0, original_max_tokens=8192)
    ratio = frequencies(rope, head_dim=64) / frequencies(Rope(theta=500_000.0), head_dim=64)
    assert ratio[0] == 1
    assert torch.isclose(ratio[-1], torch.tensor(1 / 8))
    assert (ratio.diff() <= 1e-6).all()


def test_yarn_keeps_fast_dims_and_interpolates_slow_ones() -> None:
    rope = Rope(kind="yarn", factor=4.0, original_max_tokens=2048)
    ratio = frequencies(rope, head_dim=64) / frequencies(Rope(), head_dim=64)
    assert ratio[0] == 1
    assert torch.isclose(ratio[-1], torch.tensor(1 / 4))


def test_rotations_are_cosines_then_sines_times_the_attention_factor() -> None:
    got = rotations(torch.tensor([1.0, 0.5]), torch.tensor([0, 2]), attention_factor=2.0)
    angles = torch.tensor([[0.0, 0.0], [2.0, 1.0]])
    assert torch.allclose(got[:, 0], 2 * angles.cos())
    assert torch.allclose(got[:, 1], 2 * angles.sin())


def test_longrope_divides_each_frequency_by_its_factor() -> None:
    rope = Rope(kind="longrope", dim_factors=(1.0, 2.0, 4.0, 8.0))
    ratio = frequencies(Rope(), head_dim=8) / frequencies(rope, head_dim=8)
    assert torch.allclose(ratio, torch.tensor([1.0, 2.0, 4.0, 8.0]))


def test_a_share_of_the_dims_turns_as_a_whole_head_of_that_size_would() -> None:
    got = frequencies(Rope(share=0.25), head_dim=32)
    assert torch.equal(got, frequencies(Rope(), head_dim=8))
