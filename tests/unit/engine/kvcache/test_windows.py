import pytest

from engine.kvcache.windows import KvGroup, first_block, first_reachable, group_layers


def test_layers_that_see_alike_share_blocks() -> None:
    assert group_layers([None] * 3) == (KvGroup(window=None, layers=(0, 1, 2)),)
    assert group_layers([7, 7]) == (KvGroup(window=7, layers=(0, 1)),)


def test_every_group_has_as_many_layers_as_the_rarest_window_but_the_last_perhaps_fewer() -> None:
    """Five layers of a window to each that sees all, as Gemma has them, and one over."""
    groups = group_layers([4, 4, None, 4, 4, None, 4])
    assert groups == (
        KvGroup(window=None, layers=(2, 5)),
        KvGroup(window=4, layers=(0, 1)),
        KvGroup(window=4, layers=(3, 4)),
        KvGroup(window=4, layers=(6,)),
    )


def test_a_window_reaches_so_many_tokens_itself_included() -> None:
    assert [first_reachable(position, 3) for position in (0, 2, 3, 9)] == [0, 0, 1, 7]
    assert first_reachable(9, None) == 0


@pytest.mark.parametrize(
    ("num_tokens", "window", "first"),
    [(12, None, 0), (0, 6, 0), (8, 6, 0), (12, 6, 1), (15, 6, 1), (16, 6, 2), (16, 1, 4)],
)
def test_kept_is_what_the_next_whole_block_can_see(
    num_tokens: int, window: int | None, first: int
) -> None:
    assert first_block(num_tokens, window, block_tokens=4) == first
