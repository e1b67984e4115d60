"""Texts that are hard to have: disks that are full, folders of others, parts that are too large."""

import asyncio
import logging
import os
from collections.abc import Callable
from errno import ENOSPC
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from support.checkpoints import write_checkpoint
from support.eventually import soon
from support.fake_worker import FakeWorker, tiny_text
from support.served_cluster import ServedCluster, served_cluster

from protocol.messages import AskText, TextPart
from protocol.text import packed_text
from protocol.text.packed_text import PackedText
from protocol.text.text_files import MAX_PART_BYTES, TextFiles
from router.models import texts
from router.models.kept_texts import KeptTexts
from router.models.model_unknown import ModelAway
from router.models.text_reading import ReadingRules, ReadText, read_text

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_text, "MAX_PART_BYTES", 2_000)


def add_decode(cluster: ServedCluster, name: str = "decode-0", **of: Any) -> None:
    cluster.add(FakeWorker(name, "decode", cluster.fabric, **({"model": "tiny"} | of)))


def add_changed(cluster: ServedCluster, change: Callable[[TextPart], TextPart]) -> None:
    """A worker that gives the text of the tiny model, but for what is changed of each part."""

    class Changed:
        digest = tiny_text().digest

        def part(self, asked: AskText) -> TextPart:
            return change(tiny_text().part(asked))

    worker = FakeWorker("decode-0", "decode", cluster.fabric, model="tiny")
    worker.text = Changed()  # type: ignore[assignment]
    cluster.add(worker)


async def test_where_nothing_can_be_kept_texts_are_read_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "texts").symlink_to("elsewhere")
    async with served_cluster(tmp_path / "texts") as cluster:
        with caplog.at_level(logging.WARNING, "baton.models"):
            add_decode(cluster)
            await soon(lambda: cluster.serves("tiny"))
        assert "text not kept" in [one.message for one in caplog.records]
        assert not list((tmp_path / "elsewhere").iterdir())


async def test_another_router_that_makes_room_takes_no_text_from_one_that_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(folder: Path, rules: ReadingRules) -> ReadText:
        other = KeptTexts(tmp_path / "texts", num_kept=1)
        other.keep(TextFiles.read(folder))  # the same text
        other.keep(TextFiles({"config.json": b"{}"}))
        return read_text(folder, rules)

    monkeypatch.setattr(texts, "read_text", read)
    for _ in range(2):  # had of a worker, and found on disk
        async with served_cluster(tmp_path / "texts") as cluster:
            add_decode(cluster)
            await soon(lambda: cluster.serves("tiny") or cluster.count("refused") > 0)
            assert cluster.count("refused") == 0


async def test_a_full_disk_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    is_full, write = asyncio.Event(), TextFiles.write

    def write_if_room(files: TextFiles, folder: Path) -> None:
        if is_full.is_set():
            raise OSError(ENOSPC, os.strerror(ENOSPC), str(folder))
        write(files, folder)

    monkeypatch.setattr(TextFiles, "write", write_if_room)
    is_full.set()
    async with served_cluster(tmp_path / "texts") as cluster:
        add_decode(cluster)
        why = "the router cannot write text files: No space left on device"
        await soon(lambda: cluster.models.not_ready() == why)
        is_full.clear()
        await soon(lambda: cluster.serves("tiny"))
        assert cluster.count("refused") == 0


async def test_a_text_that_breaks_its_reader_costs_no_other_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = PackedText.read(write_checkpoint(tmp_path / "bad"))

    def read(folder: Path, rules: ReadingRules) -> ReadText:
        if TextFiles.read(folder).digest == bad.digest:
            raise ZeroDivisionError("in a library")
        return read_text(folder, rules)

    monkeypatch.setattr(texts, "read_text", read)
    async with served_cluster(tmp_path / "texts") as cluster:
        add_decode(cluster, text=bad, model="bad")
        await soon(lambda: cluster.count("refused") == 1)
        add_decode(cluster, "decode-1")
        await soon(lambda: cluster.serves("tiny"))
        assert not cluster.serves("bad")


async def test_nobody_waits_for_a_text_that_was_refused(tmp_path: Path) -> None:
    files = TextFiles({"config.json": b"{}", "tokenizer.json": b"no tokeniser"})
    async with served_cluster(tmp_path / "texts", patience_s=600) as cluster:
        add_decode(cluster, text=PackedText(files.digest, files.packed()))
        await soon(lambda: cluster.count("refused") > 0)
        with pytest.raises(ModelAway):
            await cluster.models.wait_for("tiny")


@pytest.mark.parametrize("changes", [{"data": b" " * (MAX_PART_BYTES + 1)}, {"num_parts": 400}])
async def test_parts_that_are_too_large_or_become_more_are_not_taken(
    tmp_path: Path, changes: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    async with served_cluster(tmp_path / "texts") as cluster:
        with caplog.at_level(logging.WARNING, "baton.models"):
            add_changed(cluster, lambda part: replace(part, **changes) if part.index else part)
            await soon(lambda: cluster.count("lost") > 0 or cluster.serves("tiny"))
        assert not cluster.serves("tiny")
        assert "part" in caplog.records[0].__dict__["why"]


async def test_a_text_that_is_on_the_way_when_all_ends_is_not_begun_again(tmp_path: Path) -> None:
    failures: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, what: failures.append(what))
    asked: list[int] = []

    def say_nothing(part: TextPart) -> TextPart:
        asked.append(part.index)
        return replace(part, digest="another")

    async with served_cluster(tmp_path / "texts") as cluster:
        add_changed(cluster, say_nothing)
        await soon(lambda: bool(asked))
    assert not failures
