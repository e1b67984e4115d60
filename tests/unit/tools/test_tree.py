"""The measure of the house, on small trees."""

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from tools.import_graph import import_circles, import_graph
from tools.rooms import map_lines, room_sentences
from tools.source_lines import read_source
from tools.tree import LIMITS, House, Limits, excesses, main, measure, table_lines

FUNCTION = "def f() -> None:\n    return\n"


def grow(root: Path, texts: Mapping[str, str]) -> None:
    """Write a text at each path."""
    for path, text in texts.items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def measured(root: Path, texts: Mapping[str, str]) -> House:
    grow(root, texts)
    return measure(root)


def code_lines(root: Path, text: str) -> int:
    grow(root, {"engine/a.py": text})
    return read_source(root, root / "engine/a.py").num_code_lines


def circles(root: Path, texts: Mapping[str, str]) -> list[tuple[str, ...]]:
    grow(root, texts)
    return import_circles(import_graph(root))


def test_lines_of_code_are_neither_blank_nor_comments_nor_docstrings_nor_imports(
    tmp_path: Path,
) -> None:
    text = (
        '"""A module."""\n\nimport os\nfrom sys import (\n    path,\n)\n\n'
        '# why\nx = 1  # a unit\n"""Of x,\n\nin metres."""\n\n'
        'def f() -> None:\n    """Nothing."""\n    import re\n    return\n'
    )
    assert code_lines(tmp_path, text) == 3


def test_a_text_that_is_used_is_code_on_each_of_its_lines_that_is_not_blank(tmp_path: Path) -> None:
    assert code_lines(tmp_path, 'x = """a\n\nb\n"""\n') == 3


def test_the_lines_of_c_count_but_not_as_python_code(tmp_path: Path) -> None:
    house = measured(tmp_path, {"engine/a.py": FUNCTION, "engine/a.c": "int a;\nint b;\n"})
    assert (house.num_lines, house.num_code_lines) == (4, 2)


def test_a_function_is_measured_from_its_def_and_without_decorators(tmp_path: Path) -> None:
    house = measured(tmp_path, {"engine/a.py": f"@cache\n@other\n{FUNCTION}"})
    assert house.longest_function.num_lines == 2
    assert house.longest_function.place == "engine/a.py:3"


def test_a_function_inside_another_counts_in_both(tmp_path: Path) -> None:
    house = measured(
        tmp_path, {"engine/a.py": "def f():\n    def g():\n        pass\n    return g\n"}
    )
    assert house.num_functions == 2
    assert house.median_function_lines == 3  # of 4 and 2


def test_an_init_is_no_file_of_its_folder_but_its_lines_count(tmp_path: Path) -> None:
    house = measured(tmp_path, {"engine/__init__.py": '"""Models."""\n', "engine/a.py": FUNCTION})
    (engine,) = house.packages
    assert engine.num_root_files == 1
    assert engine.num_lines == 3


def test_headers_are_files_of_a_root_but_not_of_a_folder(tmp_path: Path) -> None:
    house = measured(tmp_path, {"engine/a.py": FUNCTION, "engine/a.h": "", "engine/a.c": ""})
    (engine,) = house.packages
    assert engine.num_root_files == 3
    assert engine.largest_folder.count == 2


def test_a_deeper_folder_may_be_the_largest(tmp_path: Path) -> None:
    house = measured(
        tmp_path, {"engine/a.py": FUNCTION, "engine/kv/b.py": "", "engine/kv/c.py": ""}
    )
    (engine,) = house.packages
    assert (engine.largest_folder.path, engine.largest_folder.count) == ("engine/kv", 2)


def test_a_package_that_a_checkout_lacks_is_left_out(tmp_path: Path) -> None:
    house = measured(tmp_path, {"router/a.py": FUNCTION, "other/b.py": FUNCTION})
    assert [package.name for package in house.packages] == ["router"]


def test_a_folder_without_the_product_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no package of the product"):
        measure(tmp_path)


def test_a_circle_of_two_is_found_in_every_package_that_it_passes(tmp_path: Path) -> None:
    house = measured(
        tmp_path, {"engine/a.py": f"import router.b\n{FUNCTION}", "router/b.py": "import engine.a"}
    )
    assert house.circles == (("engine/a.py", "router/b.py"),)
    assert [package.num_circles for package in house.packages] == [1, 1]


def test_imports_in_functions_and_for_type_checking_make_circles(tmp_path: Path) -> None:
    found = circles(
        tmp_path,
        {
            "engine/a.py": "def f():\n    from engine import b\n",
            "engine/b.py": "if TYPE_CHECKING:\n    from engine.c import C\n",
            "engine/c.py": "from .a import f\n",
        },
    )
    assert found == [("engine.a", "engine.b", "engine.c")]


def test_a_chain_is_no_circle(tmp_path: Path) -> None:
    found = circles(tmp_path, {"engine/a.py": "from engine.b import x", "engine/b.py": "import os"})
    assert found == []


def test_a_package_that_imports_its_parts_and_is_run_by_their_imports_is_a_circle(
    tmp_path: Path,
) -> None:
    found = circles(
        tmp_path,
        {
            "engine/__init__.py": "from engine.a import x",
            "engine/a.py": "from engine.b import x",
            "engine/b.py": "x = 1",
        },
    )
    assert found == [("engine", "engine.a")]


def test_relative_imports_are_resolved_from_their_package(tmp_path: Path) -> None:
    grow(
        tmp_path,
        {
            "engine/kv/a.py": "from ..b import x\nfrom . import c",
            "engine/b.py": "",
            "engine/kv/c.py": "",
        },
    )
    assert import_graph(tmp_path)["engine.kv.a"] == {"engine.b", "engine.kv.c"}


def test_what_is_above_its_limit_is_named(tmp_path: Path) -> None:
    house = measured(
        tmp_path, {"engine/a.py": f"import engine.b\n{FUNCTION}", "engine/b.py": "import engine.a"}
    )
    assert excesses(house, Limits(num_root_files=1, num_lines=3, function_lines=1)) == [
        "files at the root of engine: 2 > 1",
        "import circles: 1 > 0",
        "lines: 4 > 3",
        "lines of f (engine/a.py:2): 2 > 1",
    ]


def test_a_house_at_its_limits_keeps_them(tmp_path: Path) -> None:
    house = measured(tmp_path, {"engine/a.py": FUNCTION})
    assert excesses(replace(house, num_lines=LIMITS.num_lines)) == []
    assert excesses(replace(house, num_lines=LIMITS.num_lines + 1)) != []


def test_the_table_names_the_files_of_a_circle(tmp_path: Path) -> None:
    house = measured(
        tmp_path, {"engine/a.py": f"import engine.b\n{FUNCTION}", "engine/b.py": "import engine.a"}
    )
    assert "  engine/a.py, engine/b.py" in table_lines(house)


def test_a_room_says_its_docstring_on_one_line(tmp_path: Path) -> None:
    grow(
        tmp_path,
        {
            "engine/__init__.py": '"""Models\nand memory."""',
            "engine/kv/a.py": "",
            "engine/kv/a.c": "",
        },
    )
    assert room_sentences(tmp_path) == {"engine/": "Models and memory.", "engine/kv/": ""}


def test_the_map_is_wrapped_with_an_indent(tmp_path: Path) -> None:
    grow(tmp_path, {"engine/__init__.py": f'"""{"models " * 20}"""'})
    first, second = map_lines(tmp_path)
    assert first.startswith("- `engine/`: models models")
    assert second.startswith("  models")


def test_another_checkout_is_printed_as_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    grow(tmp_path, {"engine/a.py": FUNCTION})
    monkeypatch.setattr(sys, "argv", ["tree", "--repo", str(tmp_path), "--json"])
    main()
    assert json.loads(capsys.readouterr().out)["num_lines"] == 2
