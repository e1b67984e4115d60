"""The page names the formats there are."""

import re
from pathlib import Path

from protocol.formats.choose import BY_TEMPLATE
from protocol.formats.families.response_template import NAME
from protocol.formats.families.think import TAGS

PAGE = Path(__file__).parents[4] / "docs" / "formats.md"


def test_every_name_of_a_setting_is_in_its_table() -> None:
    tables = PAGE.read_text().partition("`auto`, the default")[0].split("`--reasoning-format`")
    first_cells = [re.findall(r"^\|([^|]*)\|", table, re.MULTILINE) for table in tables]
    named = [set(re.findall(r"`(\w+)`", " ".join(cells))) for cells in first_cells]
    assert named[0] == {of.name for of, _ in BY_TEMPLATE} | {NAME}
    assert named[1] == {tags.name for tags in TAGS} | {NAME}
