"""docs/architecture.md leads to what is there: its map of rooms and its questions."""

import ast
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.source_tree import ROOT, defined_names

from tools.rooms import folders, map_lines, room_sentences

PAGE = ROOT / "docs/architecture.md"
ROOMS = "Rooms"
QUESTIONS = "Questions a newcomer asks"
MIN_QUESTIONS = 12
LAYERS = re.compile(r"^\| (\w+) \| ([\w, ]+(?: > [\w, ]+)+) \|$", re.M)
MORE_THAN_A_SENTENCE: dict[str, str] = {}
"""Folders whose __init__ may hold more than one sentence -> why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question of the page and the backticked words of its answer."""

    question: str
    answer: tuple[str, ...]


def test_every_folder_says_what_it_is_in_one_sentence() -> None:
    found = [fault for folder in folders(ROOT) for fault in room_faults(folder, root=ROOT)]
    assert not found, "\n".join(found)


def test_every_exception_for_a_folder_is_needed() -> None:
    rooms = {f"{folder.relative_to(ROOT)}/": folder for folder in folders(ROOT)}
    needed = {name for name, folder in rooms.items() if _init_faults(folder / "__init__.py")}
    assert MORE_THAN_A_SENTENCE.keys() - needed == set()


def test_the_map_prints_each_folders_own_sentence() -> None:
    printed = rooms_of(PAGE.read_text())
    assert printed == room_sentences(ROOT), "`python -m tools.tree --map` prints the list"


def test_the_page_draws_the_layers_that_are_checked() -> None:
    printed = dict(LAYERS.findall(PAGE.read_text()))
    assert printed == {
        contract["containers"][0]: " > ".join(
            row.replace(" | ", ", ") for row in contract["layers"]
        )
        for contract in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"][
            "importlinter"
        ]["contracts"]
        if contract["type"] == "layers" and "containers" in contract
    }


def test_the_questions_of_a_newcomer_are_at_least_twelve() -> None:
    page = PAGE.read_text()
    assert len(_items(page, QUESTIONS)) == len(questions_of(page)) >= MIN_QUESTIONS


def test_what_the_answers_name_exists() -> None:
    questions = questions_of(PAGE.read_text())
    found = [fault for one in questions for fault in answer_faults(one, ROOT)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (None, "no __init__.py"),
        ("", "no docstring"),
        ('"""Models."""\nimport os', "more than a docstring"),
        ('"""Models. And memory."""', "not one sentence"),
        ('"""Models"""', "not one sentence"),
    ],
)
def test_a_folder_that_says_otherwise_is_found(
    tmp_path: Path, text: str | None, fault: str
) -> None:
    if text is not None:
        (tmp_path / "__init__.py").write_text(text)
    assert list(room_faults(tmp_path, root=tmp_path.parent)) == [f"{tmp_path.name}/: {fault}"]


def test_a_folder_of_one_wrapped_sentence_has_no_fault(tmp_path: Path) -> None:
    (tmp_path / "__init__.py").write_text('"""Models\nand memory, e.g. pools."""')
    assert list(room_faults(tmp_path, root=tmp_path.parent)) == []


def test_the_printed_map_is_read_back() -> None:
    page = "\n".join(["# Page", "", f"## {ROOMS}", "", *map_lines(ROOT), "", "## Next", "- `x`: y"])
    assert rooms_of(page) == room_sentences(ROOT)


def test_an_answer_is_read_over_its_lines_and_checked(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("class A:\n    x: int\n    def f(self): ...\nB = 1")
    (tmp_path / "a.c").write_text("int fill(void);")
    page = (
        f"## {QUESTIONS}\n\n- **Where is it?** `a.py`: `A.f()`,\n  `A.x` and `B`; `a.c`: `fill`.\n"
        "- **And this?** `b.py`: `A`, then `a.py`: `A.g`, `a.c`: `fil`.\n- **Who?** `A`\n"
    )
    first, second, third = questions_of(page)
    assert list(answer_faults(first, tmp_path)) == []
    assert list(answer_faults(second, tmp_path)) == [
        "And this? b.py does not exist",
        "And this? b.py does not define A",
        "And this? a.py does not define A.g",
        "And this? a.c does not define fil",
    ]
    assert list(answer_faults(third, tmp_path)) == ["Who? no path"]


def room_faults(folder: Path, *, root: Path) -> Iterator[str]:
    """What keeps the folder's __init__ from being one sentence and nothing else."""
    name = f"{folder.relative_to(root)}/"
    init = folder / "__init__.py"
    if not init.exists():
        yield f"{name}: no __init__.py"
    elif name not in MORE_THAN_A_SENTENCE:
        yield from (f"{name}: {fault}" for fault in _init_faults(init))


def rooms_of(page: str) -> dict[str, str]:
    """Folder -> sentence, as the page prints them."""
    items = (re.fullmatch(r"`([^`]+)`: (.+)", item) for item in _items(page, ROOMS))
    return {item[1]: item[2] for item in items if item}


def questions_of(page: str) -> list[Question]:
    """The questions of the page in order."""
    items = (re.fullmatch(r"\*\*(.+?\?)\*\* (.+)", item) for item in _items(page, QUESTIONS))
    return [
        Question(question=item[1], answer=tuple(re.findall(r"`([^`]+)`", item[2])))
        for item in items
        if item
    ]


def answer_faults(one: Question, root: Path) -> Iterator[str]:
    """Each path that does not exist, and each name that the path before it does not define."""
    path: Path | None = None
    for word in one.answer:
        if _is_path(word):
            path = root / word
            if not path.exists():
                yield f"{one.question} {word} does not exist"
        elif path is not None and not _defines(path, word.removesuffix("()")):
            yield f"{one.question} {path.relative_to(root)} does not define {word}"
    if path is None:
        yield f"{one.question} no path"


def _init_faults(init: Path) -> list[str]:
    tree = ast.parse(init.read_text()) if init.exists() else ast.Module([], [])
    text = " ".join((ast.get_docstring(tree) or "").split())
    if not text:
        return ["no docstring"]
    if len(tree.body) > 1:
        return ["more than a docstring"]
    is_sentence = text.endswith(".") and not re.search(r"[.!?]\s+[^a-z]", text)
    return [] if is_sentence else ["not one sentence"]


def _items(page: str, heading: str) -> list[str]:
    """The list items under a heading, each on one line."""
    _, _, section = f"\n{page}".partition(f"\n## {heading}\n")
    section, _, _ = section.partition("\n## ")
    return [" ".join(item.split()) for item in re.findall(r"^- (.+(?:\n  .+)*)", section, re.M)]


def _is_path(word: str) -> bool:
    return "/" in word or word.endswith((".py", ".c", ".h", ".md", ".toml", ".yaml"))


def _defines(path: Path, name: str) -> bool:
    """In Python a definition or a field; in any other file the word itself."""
    if not path.is_file():
        return False
    text = path.read_text()
    if path.suffix == ".py":
        return name in defined_names(ast.parse(text))
    return re.search(rf"\b{re.escape(name)}\b", text) is not None
