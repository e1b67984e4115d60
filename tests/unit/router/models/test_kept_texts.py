"""Texts on disk: found by their digest, whole or not at all, and no more than a few."""

import os
from pathlib import Path

import pytest

from protocol.process.own_folder import NotOurs
from protocol.text.text_files import TextFiles
from router.models.kept_texts import KeptTexts


def files(content: str = "{}") -> TextFiles:
    return TextFiles({"config.json": content.encode(), "1_Pooling/config.json": b"{}"})


def test_what_was_kept_is_found_by_another_process_too(tmp_path: Path) -> None:
    kept = KeptTexts(tmp_path / "texts").keep(files())
    assert KeptTexts(tmp_path / "texts").find(files().digest) == kept
    assert TextFiles.read(kept) == files()


def test_a_folder_that_has_not_its_digest_is_not_found_and_made_anew(tmp_path: Path) -> None:
    texts = KeptTexts(tmp_path / "texts")
    folder = texts.keep(files())
    (folder / "config.json").write_text('{"changed": 1}')
    assert texts.find(files().digest) is None
    assert texts.keep(files()) == folder
    assert texts.find(files().digest) == folder


def test_the_least_used_makes_room(tmp_path: Path) -> None:
    texts = KeptTexts(tmp_path / "texts", num_kept=2)
    first, second = (texts.keep(files(str(number))) for number in range(2))
    os.utime(first, (1, 1))
    os.utime(second, (2, 2))
    assert texts.find(files("0").digest) == first  # used just now
    texts.keep(files("2"))
    assert (first.exists(), second.exists()) == (True, False)
    assert len(list((tmp_path / "texts").iterdir())) == 2


def test_nothing_is_believed_of_a_folder_that_others_write(tmp_path: Path) -> None:
    texts = KeptTexts(tmp_path / "texts")
    (tmp_path / "texts").write_text("a file")
    assert texts.find(files().digest) is None
    with pytest.raises((NotOurs, OSError)):
        texts.keep(files())


def test_what_was_left_by_one_that_died_while_it_wrote_is_removed_in_its_turn(
    tmp_path: Path,
) -> None:
    texts = KeptTexts(tmp_path / "texts", num_kept=1)
    left = tmp_path / "texts" / "new-left"
    begun = tmp_path / "texts" / "new-begun"
    for draft in (left, begun):
        draft.mkdir(parents=True)
    os.utime(left, (1, 1))
    texts.keep(files())
    assert (left.exists(), begun.exists()) == (False, True)


def test_what_one_process_keeps_the_next_leaves_as_it_is(tmp_path: Path) -> None:
    one, other = KeptTexts(tmp_path / "texts"), KeptTexts(tmp_path / "texts")
    reading = os.open(one.keep(files()), os.O_RDONLY)
    try:
        other.keep(files())
        assert "config.json" in os.listdir(reading)
    finally:
        os.close(reading)


def test_a_folder_that_somebody_else_made_a_link_has_nothing(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "texts").symlink_to("elsewhere")
    texts = KeptTexts(tmp_path / "texts")
    assert texts.find(files().digest) is None
    with pytest.raises(NotOurs):
        texts.keep(files())
