"""The files that make text: which they are, their digest, and an archive of them and back."""

import json
import os
import shutil
import zlib
from pathlib import Path

import msgspec
import pytest
from support.checkpoints import write_checkpoint

from protocol.errors import CheckpointError, WireError
from protocol.messages import AskText
from protocol.text import packed_text, text_files
from protocol.text.packed_text import PackedText
from protocol.text.text_files import TextFiles
from protocol.text.tokenizer import Tokenizer

MORE = {
    "chat_template.jinja": "{{ messages }}",
    "additional_chat_templates/tool_use.jinja": "{{ tools }}",
    "1_Pooling/config.json": "{}",
    "modules.json": "[]",
    "generation_config.json": "{}",
}


def checkpoint(folder: Path) -> Path:
    write_checkpoint(folder)
    for name, text in MORE.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_a_copy_with_other_times_order_and_neighbours_has_the_same_digest(tmp_path: Path) -> None:
    one, other = checkpoint(tmp_path / "one"), tmp_path / "other"
    other.mkdir()
    for name in sorted(TextFiles.read(one).files, reverse=True):
        (other / name).parent.mkdir(exist_ok=True)
        shutil.copy(one / name, other / name)
        os.utime(other / name, (1, 1))
    (other / "model.safetensors").write_bytes(b"weights")
    (other / "README.md").write_text("of another copy")
    (other / "onnx").mkdir()
    (other / "onnx" / "config.json").write_text("{}")
    assert TextFiles.read(other).digest == TextFiles.read(one).digest


def test_files_of_a_cache_that_are_links_are_read(tmp_path: Path) -> None:
    one, linked = checkpoint(tmp_path / "one"), tmp_path / "linked"
    linked.mkdir()
    for name in TextFiles.read(one).files:
        (linked / name).parent.mkdir(exist_ok=True)
        (linked / name).symlink_to(one / name)
    assert TextFiles.read(linked) == TextFiles.read(one)


@pytest.mark.parametrize("name", ["tokenizer.json", *MORE])
def test_each_file_has_a_part_in_the_digest(tmp_path: Path, name: str) -> None:
    folder = checkpoint(tmp_path / "model")
    before = TextFiles.read(folder).digest
    (folder / name).write_text((folder / name).read_text() + " ")
    changed = TextFiles.read(folder).digest
    (folder / name).unlink()
    assert len({before, changed, TextFiles.read(folder).digest}) == 3


def test_what_was_packed_reads_as_the_folder_that_it_was_packed_of(tmp_path: Path) -> None:
    files = TextFiles.read(checkpoint(tmp_path / "model"))
    again = TextFiles.unpacked(files.packed(), digest=files.digest)
    (tmp_path / "again").mkdir()
    again.write(tmp_path / "again")
    assert TextFiles.read(tmp_path / "again") == files
    text = "naïve café 🙂"
    loaded = Tokenizer.load(tmp_path / "again")
    assert loaded.encode(text) == Tokenizer.load(tmp_path / "model").encode(text)


def test_a_pooling_file_lies_where_the_modules_say(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model")
    (folder / "pool").mkdir()
    (folder / "pool" / "config.json").write_text('{"pooling_mode": "mean"}')
    assert "pool/config.json" not in TextFiles.read(folder).files
    (folder / "modules.json").write_text('[{"path": ""}, {"path": "pool"}]')
    files = TextFiles.read(folder)
    assert files.files["pool/config.json"] == b'{"pooling_mode": "mean"}'
    assert TextFiles.unpacked(files.packed(), digest=files.digest) == files


@pytest.mark.parametrize("path", ["..", "/etc", "a/b", ".", "", None, 1])
def test_modules_that_name_a_folder_elsewhere_name_none(tmp_path: Path, path: object) -> None:
    folder = checkpoint(tmp_path / "a" / "model")
    before = TextFiles.read(folder).files.keys()
    (tmp_path / "a" / "config.json").write_text("{}")
    (folder / "modules.json").write_text(json.dumps([{}, {"path": path}]))
    assert TextFiles.read(folder).files.keys() == before


def packed(files: object) -> bytes:
    return zlib.compress(msgspec.msgpack.encode(files))


@pytest.mark.parametrize(
    ("archive", "why"),
    [
        (b"no archive", "incorrect header"),
        (packed({"config.json": b"{}"})[:-9], "cut short"),
        (packed(["config.json"]), "Expected `object`"),
        (packed({"config.json": "text"}), "Expected `bytes`"),
        (packed({"../config.json": b"{}"}), "'../config.json' is none of them"),
        (packed({"/etc/passwd": b""}), "'/etc/passwd' is none of them"),
        (packed({".._Pooling/config.json": b""}), "is none of them"),
        (packed({"additional_chat_templates/../a.jinja": b""}), "is none of them"),
        (packed({"model.safetensors": b""}), "'model.safetensors' is none of them"),
        (packed({"config.json": b"{}"}), "their digest is"),
    ],
)
def test_an_archive_that_is_not_what_was_asked_for_is_refused(archive: bytes, why: str) -> None:
    with pytest.raises(WireError, match=why.replace(".", r"\.")):
        TextFiles.unpacked(archive, digest="0" * 32)


def test_an_archive_that_unpacks_to_more_than_is_allowed_is_refused_before_it_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(text_files, "MAX_ARCHIVE_BYTES", 1000)
    bomb = packed({"config.json": b" " * 100_000})
    with pytest.raises(WireError, match="more than 1000 bytes"):
        TextFiles.unpacked(bomb, digest="0" * 32)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").symlink_to("nowhere")
    (folder / "chat_template.json").mkdir()
    with pytest.raises(CheckpointError, match=r"chat_template\.json|tokenizer\.json"):
        TextFiles.read(folder)


def test_its_parts_put_together_are_the_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_text, "MAX_PART_BYTES", 1000)
    text = PackedText.read(checkpoint(tmp_path / "model"))
    first = text.part(AskText(digest=text.digest))
    asked = (AskText(digest=text.digest, index=index) for index in range(first.num_parts))
    parts = [text.part(one) for one in asked]
    assert len(parts) > 2 and all(0 < len(part.data) <= 1000 for part in parts)
    assert b"".join(part.data for part in parts) == text.archive


@pytest.mark.parametrize("index", [-1, 10**6])
def test_a_part_that_there_is_not_is_empty(tmp_path: Path, index: int) -> None:
    text = PackedText.read(checkpoint(tmp_path / "model"))
    assert text.part(AskText(digest=text.digest, index=index)).data == b""


def test_of_another_text_a_worker_has_no_parts(tmp_path: Path) -> None:
    text = PackedText.read(checkpoint(tmp_path / "model"))
    part = text.part(AskText(digest="other"))
    assert (part.digest, part.num_parts, part.data) == ("other", 0, b"")
