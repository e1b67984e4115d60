"""Models learnt from fake workers over real links: texts asked for, checked, kept and chosen."""

import asyncio
import logging
from pathlib import Path

import pytest
from msgspec import structs
from support.checkpoints import write_checkpoint
from support.eventually import soon
from support.fake_worker import FakeWorker, tiny_text
from support.served_cluster import ServedCluster, served_cluster

from protocol.ids import WorkerId
from protocol.messages import AskText, TextPart
from protocol.store.workers import ComingWorker
from protocol.text import packed_text
from protocol.text.packed_text import PackedText
from protocol.text.text_files import TextFiles
from router.models import texts
from router.models.model_unknown import ModelAway, UnknownModel
from router.requests.events import RouterEnds

pytestmark = pytest.mark.anyio
SMALL_PARTS = 2_000


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_text, "MAX_PART_BYTES", SMALL_PARTS)


@pytest.fixture(scope="module")
def other_text(tmp_path_factory: pytest.TempPathFactory) -> PackedText:
    return PackedText.read(write_checkpoint(tmp_path_factory.mktemp("other")))


class StrayWorker(FakeWorker):
    """Says that it has a text, and gives another, none, or dies while it gives it."""

    def __init__(self, cluster: ServedCluster, name: str, *, gives: PackedText | None) -> None:
        super().__init__(name, "decode", cluster.fabric, model="tiny")
        self.num_asked = 0
        self.text = _Stray(self, gives)  # type: ignore[assignment]


class _Stray:
    def __init__(self, worker: StrayWorker, gives: PackedText | None) -> None:
        self._worker = worker
        self._gives = gives

    def part(self, asked: AskText) -> TextPart:
        worker = self._worker
        worker.num_asked += 1
        if self._gives is None and asked.index == 1:
            worker.die()
        given = self._gives or tiny_text()
        part = given.part(AskText(digest=given.digest, index=asked.index))
        return TextPart(
            digest=asked.digest, index=part.index, num_parts=part.num_parts, data=part.data
        )


def decode(cluster: ServedCluster, name: str = "decode-0", **of: object) -> FakeWorker:
    return FakeWorker(name, "decode", cluster.fabric, **({"model": "tiny"} | of))  # type: ignore[arg-type]


async def test_a_model_is_served_once_its_text_was_had_of_a_worker(tmp_path: Path) -> None:
    async with served_cluster(tmp_path / "texts") as cluster:
        assert cluster.models.not_ready() == "no decode worker"
        cluster.add(decode(cluster))
        await soon(lambda: cluster.models.not_ready() is None)
        chosen = cluster.models.choose("tiny", "key")
        assert chosen.text.version == cluster.registry.workers[0].registration.version
        assert chosen.text.tokenizer.decode(chosen.text.tokenizer.encode("hello")) == "hello"
        assert (cluster.count("had"), cluster.count("kept")) == (1, 0)


async def test_a_model_that_has_just_left_is_waited_for(tmp_path: Path) -> None:
    for patience_s, reason in ((60.0, None), (0.0, "no decode worker")):
        async with served_cluster(tmp_path / "texts", patience_s=patience_s) as cluster:
            worker = cluster.add(decode(cluster))
            await soon(lambda: cluster.serves("tiny"))
            worker.die()
            await soon(lambda: not cluster.serves("tiny"))
            assert cluster.models.not_ready() == reason


async def test_the_next_router_on_this_machine_asks_no_worker(tmp_path: Path) -> None:
    for had, kept in ((1, 0), (0, 1)):
        async with served_cluster(tmp_path / "texts") as cluster:
            cluster.add(decode(cluster))
            await soon(lambda: cluster.serves("tiny"))
            assert (cluster.count("had"), cluster.count("kept")) == (had, kept)


async def test_of_a_worker_that_dies_while_it_gives_its_text_the_next_one_is_asked(
    tmp_path: Path,
) -> None:
    async with served_cluster(tmp_path / "texts") as cluster:
        dying = StrayWorker(cluster, "decode-0", gives=None)
        cluster.add(dying)
        await soon(lambda: dying.num_asked > 1)
        assert not cluster.serves("tiny")
        cluster.add(decode(cluster, "decode-1"))
        await soon(lambda: cluster.serves("tiny"))


async def test_a_text_of_another_digest_is_refused_and_the_next_worker_asked(
    tmp_path: Path, other_text: PackedText, caplog: pytest.LogCaptureFixture
) -> None:
    async with served_cluster(tmp_path / "texts") as cluster:
        with caplog.at_level(logging.WARNING, "baton.models"):
            wrong = StrayWorker(cluster, "decode-0", gives=other_text)
            cluster.add(wrong)
            await soon(lambda: cluster.count("lost") > 0)
        assert not cluster.serves("tiny")
        assert cluster.models.not_ready() == "its text is on the way"
        assert any("their digest is" in one.__dict__["why"] for one in caplog.records)
        with pytest.raises(ModelAway):
            cluster.models.choose("tiny", "key")
        cluster.add(decode(cluster, "decode-1"))
        await soon(lambda: cluster.serves("tiny"))
        chosen = cluster.models.choose("tiny", "key").text
        assert chosen.tokenizer.vocab_size != 500


async def test_a_silent_worker_is_not_waited_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts, "PART_S", 0.2)
    async with served_cluster(tmp_path / "texts") as cluster:
        silent = decode(cluster)
        silent.text = PackedText("another that it says nothing of", b"")
        cluster.add(silent)
        await soon(lambda: cluster.count("lost") > 0)
        cluster.add(decode(cluster, "decode-1"))
        await soon(lambda: cluster.serves("tiny"))


async def test_a_text_that_cannot_be_read_is_refused_once_and_said_why(
    tmp_path: Path, other_text: PackedText, caplog: pytest.LogCaptureFixture
) -> None:
    files = TextFiles({"config.json": b"{}", "tokenizer.json": b"no tokeniser"})
    broken = PackedText(files.digest, files.packed())
    async with served_cluster(tmp_path / "texts") as cluster:
        with caplog.at_level(logging.ERROR, "baton.models"):
            cluster.add(decode(cluster, text=broken))
            await soon(lambda: cluster.count("refused") > 0)
        assert "its text cannot be used" in (cluster.models.not_ready() or "")
        assert caplog.records[0].__dict__["remedy"]
        cluster.add(decode(cluster, "decode-1", model="other", text=other_text))
        await soon(lambda: cluster.serves("other"))
        assert cluster.count("refused") == 1 and not cluster.serves("tiny")


async def test_a_revision_that_left_is_away_and_the_other_goes_on(tmp_path: Path) -> None:
    async with served_cluster(tmp_path / "texts", patience_s=0.1) as cluster:
        old, _ = (
            cluster.add(decode(cluster, f"decode-{number}", revision=revision))
            for number, revision in enumerate(("0123456", "6543210"))
        )
        await soon(lambda: revisions(cluster) == ("0123456", "6543210"))
        old.die()
        await soon(lambda: revisions(cluster) == ("6543210",))
        with pytest.raises(ModelAway):
            cluster.models.choose("tiny@0123456", "key")
        assert cluster.models.choose("tiny", "key").text.version.revision == "6543210"
        with pytest.raises(UnknownModel):
            cluster.models.choose("tiny@abcdefg", "key")


def revisions(cluster: ServedCluster) -> tuple[str, ...]:
    return tuple(revision for one in cluster.models.listed() for revision in one.revisions)


async def test_two_revisions_with_one_text_are_read_once(tmp_path: Path) -> None:
    async with served_cluster(tmp_path / "texts") as cluster:
        for number, revision in enumerate(("0123456", "6543210")):
            cluster.add(decode(cluster, f"decode-{number}", revision=revision))
        await soon(lambda: revisions(cluster) == ("0123456", "6543210"))
        one, other = (
            cluster.models.choose(f"tiny@{name}", "key") for name in ("0123456", "654321")
        )
        assert one.text.tokenizer is other.text.tokenizer
        assert cluster.count("had") == 1


async def test_what_left_is_away_for_a_while_and_what_never_was_is_unknown(tmp_path: Path) -> None:
    async with served_cluster(tmp_path / "texts", patience_s=0.1) as cluster:
        worker = cluster.add(decode(cluster))
        await soon(lambda: cluster.serves("tiny"))
        worker.die()
        await soon(lambda: not cluster.serves("tiny"))
        with pytest.raises(ModelAway):
            cluster.models.choose("tiny", "key")
        with pytest.raises(UnknownModel):
            cluster.models.choose("another", "key")
        await asyncio.sleep(0.1)
        with pytest.raises(ModelAway):
            await cluster.models.wait_for("tiny")


async def test_a_model_that_loads_is_waited_for(tmp_path: Path) -> None:
    async with served_cluster(tmp_path / "texts", patience_s=60) as cluster:
        cluster.add(decode(cluster, model="here"))
        await soon(lambda: cluster.serves("here"))
        with pytest.raises(UnknownModel):
            cluster.models.choose("tiny", "key")
        cluster.is_coming(ComingWorker(worker=WorkerId("w"), role="decode", model="tiny"))
        await soon(lambda: "tiny" in cluster.registry.coming_models)
        with pytest.raises(ModelAway):
            cluster.models.choose("tiny", "key")
        waiting = asyncio.ensure_future(cluster.models.wait_for("tiny"))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        cluster.add(decode(cluster, "decode-1"))
        await waiting
        assert cluster.models.choose("tiny", "key").text.version.model == "tiny"


@pytest.mark.parametrize("patience_s", [60.0, 0.0])
async def test_it_is_ready_while_requests_would_wait(
    tmp_path: Path, other_text: PackedText, patience_s: float
) -> None:
    """For a worker, or for its text alone."""
    async with served_cluster(tmp_path / "texts", patience_s=patience_s) as cluster:
        worker = cluster.add(decode(cluster))
        await soon(lambda: cluster.serves("tiny"))
        worker.die()
        await soon(lambda: not cluster.serves("tiny"))
        waits = patience_s > 0
        assert cluster.models.not_ready() == (None if waits else "no decode worker")
        other = StrayWorker(cluster, "decode-1", gives=other_text)
        other.registration = structs.replace(other.registration, text="0" * 32)
        cluster.add(other)
        await soon(lambda: bool(cluster.registry.ready_workers()))
        assert (cluster.models.not_ready() is None) == waits


async def test_a_router_that_ends_has_nobody_wait(tmp_path: Path) -> None:
    async with served_cluster(tmp_path / "texts", patience_s=60) as cluster:
        cluster.is_coming(ComingWorker(worker=WorkerId("w"), role="decode", model="tiny"))
        await soon(lambda: "tiny" in cluster.registry.coming_models)
        waiting = asyncio.ensure_future(cluster.models.wait_for("tiny"))
        await asyncio.sleep(0)
        cluster.models.end_waits()
        with pytest.raises(RouterEnds):
            await waiting
        with pytest.raises(RouterEnds):
            await cluster.models.wait_for("tiny")


async def test_aliases_count_when_they_are_used(tmp_path: Path) -> None:
    async with served_cluster(tmp_path / "texts") as cluster:
        cluster.add(decode(cluster))
        await soon(lambda: cluster.serves("tiny"))
        cluster.models.use_aliases({"prod": {"tiny": 1}})
        assert cluster.models.choose("prod", "key").text.version.model == "tiny"
        cluster.models.use_aliases({})
        with pytest.raises(UnknownModel):
            cluster.models.choose("prod", "key")


async def test_a_prefill_worker_gives_its_text_and_serves_nothing_alone(tmp_path: Path) -> None:
    async with served_cluster(tmp_path / "texts") as cluster:
        cluster.add(FakeWorker("prefill-0", "prefill", cluster.fabric, model="tiny"))
        await soon(lambda: cluster.count("had") == 1)
        with pytest.raises(ModelAway):
            cluster.models.choose("tiny", "key")
