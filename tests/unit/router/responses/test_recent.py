from router.responses.recent import LARGEST_SHARE, OVERHEAD_BYTES, TTL_S, RecentAnswers

ME, YOU = "me", "you"
SIZE = OVERHEAD_BYTES + 10
"""As counted, of ten bytes."""


def test_an_answer_is_remembered_for_a_while() -> None:
    recent = RecentAnswers(max_bytes=8 * SIZE)
    recent.remember(ME, "a", b"12", now=5)
    assert recent.find(ME, ["a", "b"], now=5 + TTL_S - 1) == {"a": b"12"}
    assert recent.find(YOU, ["a"], now=5) == {}
    assert recent.find(ME, ["a"], now=5 + TTL_S) == {}


def test_the_oldest_make_room_for_their_owner_alone() -> None:
    recent = RecentAnswers(max_bytes=8 * SIZE)
    recent.remember(YOU, "y", bytes(10), now=0)
    for number in range(9):
        recent.remember(ME, str(number), bytes(10), now=number)
    assert list(recent.find(ME, map(str, range(9)), now=9)) == list("12345678")
    assert recent.find(YOU, ["y"], now=9)
    recent.remember(ME, "large", bytes(8 * SIZE // LARGEST_SHARE - OVERHEAD_BYTES + 1), now=9)
    assert list(recent.find(ME, ["large", "1"], now=9)) == ["1"]
