from router.responses.recent import LARGEST_SHARE, OVERHEAD_BYTES, TTL_S, RecentAnswers

ME, YOU = "me", "you"
SIZE = OVERHEAD_BYTES + 10
"""As counted, of ten bytes."""


def test_an_answer_is_remembered_for_a_while() -> None:
    recent = RecentAnswers(max_bytes=8 * SIZE, num_owners=lambda: 1)
    recent.remember(ME, "a", b"12", now=5)
    assert recent.find(ME, ["a", "b"], now=5 + TTL_S - 1) == {"a": b"12"}
    assert recent.find(YOU, ["a"], now=5) == {}
    assert recent.find(ME, ["a"], now=5 + TTL_S) == {}


def test_the_oldest_make_room_for_their_owner_alone() -> None:
    recent = RecentAnswers(max_bytes=16 * SIZE, num_owners=lambda: 2)
    recent.remember(YOU, "y", bytes(10), now=0)
    for number in range(9):
        recent.remember(ME, str(number), bytes(10), now=number)
    assert list(recent.find(ME, map(str, range(9)), now=9)) == list("12345678")
    assert recent.find(YOU, ["y"], now=9)
    recent.remember(ME, "large", bytes(8 * SIZE // LARGEST_SHARE - OVERHEAD_BYTES + 1), now=9)
    assert list(recent.find(ME, ["large", "1"], now=9)) == ["1"]


def test_owners_that_are_gone_or_new_do_not_make_it_more_in_all() -> None:
    owners = ["a"]
    recent = RecentAnswers(max_bytes=32 * SIZE, num_owners=lambda: len(owners))
    for number in range(32):
        recent.remember("a", str(number), bytes(10), now=0)
    owners += ["b", "c", "d"]
    for owner in ("b", "c"):
        for number in range(9):
            recent.remember(owner, str(number), bytes(10), now=1)
    assert len(recent.find("b", map(str, range(9)), now=1)) == 8
    assert len(recent.find("c", map(str, range(9)), now=1)) == 8
    assert list(recent.find("a", map(str, range(32)), now=1)) == [str(n) for n in range(24, 32)]


def test_an_answer_said_again_counts_once() -> None:
    recent = RecentAnswers(max_bytes=8 * SIZE, num_owners=lambda: 1)
    for _ in range(20):
        recent.remember(ME, "a", bytes(10), now=0)
    for number in range(7):
        recent.remember(ME, str(number), bytes(10), now=0)
    assert recent.find(ME, ["a", "0"], now=0) == {"a": bytes(10), "0": bytes(10)}
