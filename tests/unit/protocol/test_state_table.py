"""A life follows its table, and says how it came to where it was when it does not."""

from enum import StrEnum

import pytest

from protocol.state_table import STORY, IllegalTransition, Life, StateTable


class Door(StrEnum):
    SHUT = "shut"
    OPEN = "open"
    BRICKED_UP = "bricked_up"


class Deed(StrEnum):
    PUSHED = "pushed"
    PULLED = "pulled"
    BUILT = "built"


TABLE = StateTable(
    {
        (Door.SHUT, Deed.PUSHED): Door.OPEN,
        (Door.OPEN, Deed.PUSHED): Door.OPEN,
        (Door.OPEN, Deed.PULLED): Door.SHUT,
        (Door.SHUT, Deed.BUILT): Door.BRICKED_UP,
    }
)


def door() -> Life[Door, Deed]:
    return TABLE.begin(Door.SHUT, name="door 7")


def test_a_life_goes_where_its_table_says() -> None:
    life = door()
    assert life.move(Deed.PUSHED) is Door.OPEN
    assert life.state is Door.OPEN
    assert life.story == "pushed->open"


def test_a_state_without_a_row_is_final() -> None:
    life = door()
    assert not life.is_over
    life.move(Deed.BUILT)
    assert life.is_over


def test_an_event_that_changes_nothing_is_no_part_of_the_story() -> None:
    life = door()
    life.move(Deed.PUSHED)
    life.move(Deed.PUSHED)
    assert life.story == "pushed->open"


def test_a_missing_row_raises_with_the_story_and_changes_nothing() -> None:
    life = door()
    life.move(Deed.PUSHED)
    life.move(Deed.PULLED)
    life.move(Deed.BUILT)
    with pytest.raises(IllegalTransition) as raised:
        life.move(Deed.PUSHED, facts="2 hinges")
    assert str(raised.value) == (
        "door 7: pushed in state bricked_up; "
        "story: [pushed->open, pulled->shut, built->bricked_up]; 2 hinges"
    )
    assert life.state is Door.BRICKED_UP


def test_a_story_is_bounded() -> None:
    life = door()
    for _ in range(STORY):
        life.move(Deed.PUSHED)
        life.move(Deed.PULLED)
    assert life.story.count(",") == STORY - 1
