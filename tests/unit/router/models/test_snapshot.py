"""What answers a name: a model, a revision of it, an alias, or the only one there is."""

import pytest
from support.checkpoints import write_checkpoint

from protocol.messages import ServedVersion
from router.models.model_unknown import ModelAway, UnknownModel
from router.models.snapshot import AvailableVersion, ServedSnapshot
from router.models.text_reading import ReadingRules, ReadText, read_text

OLD, NEW = "0e9e39f249a16976918f6564b8830bc894c89659", "0e9e39aa11111111111111111111111111111111"
KEYS = [f"session-{number}" for number in range(300)]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> ReadText:
    return read_text(write_checkpoint(tmp_path_factory.mktemp("model")), ReadingRules())


def version(
    read: ReadText,
    model: str,
    revision: str = OLD,
    *,
    num: int = 1,
    text: str = "t",
    context: int = 64,
) -> AvailableVersion:
    of = ServedVersion(model=model, revision=revision, text=text)
    return AvailableVersion(
        text=read.of_version(of), num_decode_workers=num, context_tokens=context
    )


def revisions(snapshot: ServedSnapshot, name: str | None) -> set[tuple[str, str]]:
    chosen = (snapshot.choose(name, key).text.version for key in KEYS)
    return {(one.model, one.revision) for one in chosen}


def two_models(text: ReadText) -> ServedSnapshot:
    return ServedSnapshot(
        models={
            "a": (version(text, "a", OLD), version(text, "a", NEW)),
            "b": (version(text, "b"),),
        },
        aliases={"prod": {"a": 95, "b": 5}, "canary": {f"a@{NEW}": 1}, "dark": {"a": 1, "c": 0}},
    )


def test_a_model_is_asked_for_by_its_name_or_a_revision_of_it(text: ReadText) -> None:
    snapshot = two_models(text)
    assert revisions(snapshot, "a") == {("a", OLD), ("a", NEW)}
    assert revisions(snapshot, f"a@{OLD}") == {("a", OLD)}
    assert revisions(snapshot, f"a@{OLD[:7]}") == {("a", OLD)}
    assert snapshot.choose(f"a@{OLD[:7]}", "key").name == f"a@{OLD[:7]}"


def test_an_alias_is_answered_by_what_it_stands_for(text: ReadText) -> None:
    snapshot = two_models(text)
    assert {model for model, _ in revisions(snapshot, "prod")} == {"a", "b"}
    assert revisions(snapshot, "canary") == {("a", NEW)}
    assert {model for model, _ in revisions(snapshot, "dark")} == {"a"}


def test_an_alias_may_have_the_name_of_a_model_that_it_stands_for(text: ReadText) -> None:
    models = {"a": (version(text, "a"),), "b": (version(text, "b"),)}
    snapshot = ServedSnapshot(models=models, aliases={"a": {"a": 1, "b": 1}})
    assert {model for model, _ in revisions(snapshot, "a")} == {"a", "b"}
    assert [(one.name, dict(one.alias_for)) for one in snapshot.listed()] == [
        ("b", {}), ("a", {"a": 1, "b": 1}),
    ]  # fmt: skip


def test_what_an_alias_stands_for_and_is_away_leaves_all_to_the_others(text: ReadText) -> None:
    models = {"a": (version(text, "a"),), "b": ()}
    snapshot = ServedSnapshot(models=models, aliases={"prod": {"a": 5, "b": 95}, "only": {"b": 1}})
    assert revisions(snapshot, "prod") == {("a", OLD)}
    with pytest.raises(ModelAway):
        snapshot.choose("only", "key")


def test_a_revision_that_two_begin_with_is_none(text: ReadText) -> None:
    with pytest.raises(UnknownModel):
        two_models(text).choose(f"a@{OLD[:6]}", "key")


@pytest.mark.parametrize("name", ["c", "a@", "a@0e9e3", "a@ffffff", "b@c@d", "PROD", f"prod@{OLD}"])
def test_what_is_not_known_is_told_with_what_is(text: ReadText, name: str) -> None:
    with pytest.raises(UnknownModel) as raised:
        two_models(text).choose(name, "key")
    assert (raised.value.name, raised.value.served) == (name, ("a", "b", "canary", "dark", "prod"))


@pytest.mark.parametrize("name", [None, ""])
def test_without_a_name_the_only_model_answers(text: ReadText, name: str | None) -> None:
    one = ServedSnapshot(models={"a": (version(text, "a"),)}, aliases={"prod": {"a": 1}})
    chosen = one.choose(name, "key")
    assert (chosen.name, chosen.text.version.model) == ("a", "a")
    with pytest.raises(UnknownModel):
        two_models(text).choose(name, "key")


@pytest.mark.parametrize("name", [None, ""])
def test_without_a_name_no_model_stands_in_for_another_that_is_away(
    text: ReadText, name: str | None
) -> None:
    with pytest.raises(UnknownModel) as raised:
        ServedSnapshot(models={"a": (version(text, "a"),), "b": ()}).choose(name, "key")
    assert raised.value.served == ("a", "b")


def test_a_revision_that_left_is_away_while_another_of_its_model_is_here(text: ReadText) -> None:
    gone = "1" * 40
    left = ServedSnapshot(
        models={"a": (version(text, "a", OLD),)}, away={"a": frozenset({NEW, gone})}
    )
    for name in (f"a@{NEW}", f"a@{gone[:6]}"):
        with pytest.raises(ModelAway):
            left.choose(name, "key")
    assert revisions(left, f"a@{OLD[:7]}") == {("a", OLD)}
    for name in (f"a@{OLD[:6]}", "a@222222"):  # of two, and of none
        with pytest.raises(UnknownModel):
            left.choose(name, "key")


def test_a_revision_that_nobody_had_may_be_that_of_a_worker_that_loads(text: ReadText) -> None:
    models = {"a": (version(text, "a", OLD),)}
    for coming in ("a", ""):
        with pytest.raises(ModelAway):
            ServedSnapshot(models=models, coming=frozenset({coming})).choose("a@222222", "key")
    with pytest.raises(UnknownModel):
        ServedSnapshot(models=models, coming=frozenset({"b"})).choose("a@222222", "key")


def test_a_model_without_a_worker_is_away_and_a_router_that_has_just_begun_knows_nothing(
    text: ReadText,
) -> None:
    away = ServedSnapshot(models={"a": (), "b": (version(text, "b"),)})
    for snapshot, name in (
        (away, "a"),
        (away, f"a@{OLD}"),
        (ServedSnapshot(), "a"),
        (ServedSnapshot(), None),
    ):
        with pytest.raises(ModelAway):
            snapshot.choose(name, "key")


@pytest.mark.parametrize(("coming", "name"), [("c", "c"), ("c", f"c@{OLD}"), ("", "c")])
def test_a_model_whose_first_worker_loads_is_away(text: ReadText, coming: str, name: str) -> None:
    models = {"a": (version(text, "a"),)}
    with pytest.raises(ModelAway):
        ServedSnapshot(models=models, coming=frozenset({coming})).choose(name, "key")
    with pytest.raises(UnknownModel):
        ServedSnapshot(models=models, coming=frozenset({"d"})).choose(name, "key")


def test_versions_of_one_name_share_its_requests_by_their_decode_workers(text: ReadText) -> None:
    some, many = version(text, "a", OLD, num=1), version(text, "a", NEW, num=9)
    chosen = [ServedSnapshot(models={"a": (some, many)}).choose("a", key) for key in KEYS]
    assert 0.8 < sum(one.text.version.revision == NEW for one in chosen) / len(KEYS) < 0.97


def test_two_texts_of_one_revision_are_two_versions(text: ReadText) -> None:
    one, other = version(text, "a", text="1"), version(text, "a", text="2")
    snapshot = ServedSnapshot(models={"a": (one, other)})
    assert {snapshot.choose(f"a@{OLD}", key).text.version.text for key in KEYS} == {"1", "2"}


def test_models_are_listed_with_what_they_take(text: ReadText) -> None:
    models = {"b": (), "a": (version(text, "a", context=64), version(text, "a", NEW, context=32))}
    listed = ServedSnapshot(models=models, aliases={"prod": {"a": 1}, "none": {"c": 1}}).listed()
    assert [(one.name, one.context_tokens, one.revisions) for one in listed] == [
        ("a", 64, tuple(sorted((OLD, NEW)))), ("b", None, ()), ("none", None, ()), ("prod", 64, ()),
    ]  # fmt: skip
