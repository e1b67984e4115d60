"""The shape of the house: files, folders, circles and lines of the product, measured from source.

    python -m tools.tree [--repo DIR] [--json | --map]

Counted are .py, .c and .h files. A package's `__init__.py` says what the package is: its lines
count, but it is not counted as a file, neither at a root nor in a folder; nor are C headers in a
folder other than a root. What is generated or untracked is counted like the rest.
"""

import argparse
import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tools.import_graph import PRODUCT, import_circles, import_graph, module_files
from tools.rooms import SUFFIXES, folders, map_lines
from tools.source_lines import Function, SourceFile, read_source

LONG_FUNCTION_LINES = 40
_TITLES = (
    *("package", "root files", "largest folder", "circles", "lines", "code lines"),
    *("largest file", f"functions > {LONG_FUNCTION_LINES}"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The most that the house may have of each."""

    num_root_files: int = 10  # of one package
    num_folder_files: int = 16  # C headers not counted
    num_circles: int = 0
    num_lines: int = 71_000  # 32,500 once laid; HTTP, APIs, a fleet, GPUs, clusters since
    num_code_lines: int = 42_500
    median_function_lines: float = 6
    function_lines: int = 60


LIMITS = Limits()


@dataclass(frozen=True, slots=True, kw_only=True)
class Largest:
    """The largest folder, in files, or the largest file, in lines."""

    path: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """One package of the product. Lines are Python and C, lines of code Python alone."""

    name: str
    num_root_files: int
    largest_folder: Largest  # without __init__ and C headers
    num_circles: int  # that pass through it
    num_lines: int
    num_code_lines: int
    largest_file: Largest
    num_long_functions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class House:
    """The whole product."""

    packages: tuple[Package, ...]
    circles: tuple[tuple[str, ...], ...]  # files of each
    num_lines: int
    num_code_lines: int
    num_functions: int
    median_function_lines: float
    longest_function: Function


def measure(root: Path) -> House:
    """Measure the checkout at `root`. ValueError if it has no function of the product."""
    sources = {name: _sources(root, name) for name in PRODUCT}
    circles = _circle_files(root)
    functions = [one for files in sources.values() for file in files for one in file.functions]
    if not functions:
        raise ValueError(f"{root}: no package of the product has a function")
    packages = [_package(root, name, files, circles) for name, files in sources.items() if files]
    return House(
        packages=tuple(packages),
        circles=circles,
        num_lines=sum(package.num_lines for package in packages),
        num_code_lines=sum(package.num_code_lines for package in packages),
        num_functions=len(functions),
        median_function_lines=statistics.median(one.num_lines for one in functions),
        longest_function=max(functions, key=lambda one: (one.num_lines, one.place)),
    )


def excesses(house: House, limits: Limits = LIMITS) -> list[str]:
    """What of the house is above its limit, one sentence each; empty if nothing is."""
    longest = house.longest_function
    measured: list[tuple[str, float, float]] = [
        *(_of_root(package, limits) for package in house.packages),
        *(_of_folder(package, limits) for package in house.packages),
        ("import circles", len(house.circles), limits.num_circles),
        ("lines", house.num_lines, limits.num_lines),
        ("lines of code", house.num_code_lines, limits.num_code_lines),
        ("median lines of a function", house.median_function_lines, limits.median_function_lines),
        (f"lines of {longest.name} ({longest.place})", longest.num_lines, limits.function_lines),
    ]
    return [f"{what}: {count:,} > {limit:,}" for what, count, limit in measured if count > limit]


def table_lines(house: House) -> list[str]:
    """The packages as a table, then what holds for the whole."""
    rows = [_TITLES, *(_row(package) for package in house.packages)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_TITLES))]
    longest = house.longest_function
    return [
        *("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows),
        "",
        f"{house.num_lines:,} lines, {house.num_code_lines:,} of them Python code",
        f"{house.num_functions:,} functions of {house.median_function_lines:g} lines (median); "
        f"the longest has {longest.num_lines}: {longest.name} ({longest.place})",
        f"import circles: {len(house.circles)}",
        *(f"  {', '.join(circle)}" for circle in house.circles),
    ]


def _of_root(package: Package, limits: Limits) -> tuple[str, float, float]:
    return f"files at the root of {package.name}", package.num_root_files, limits.num_root_files


def _of_folder(package: Package, limits: Limits) -> tuple[str, float, float]:
    folder = package.largest_folder
    return f"files in {folder.path}", folder.count, limits.num_folder_files


def _row(package: Package) -> tuple[str, ...]:
    folder, file = package.largest_folder, package.largest_file
    return (
        package.name,
        str(package.num_root_files),
        f"{folder.count} ({folder.path})",
        str(package.num_circles),
        f"{package.num_lines:,}",
        f"{package.num_code_lines:,}",
        f"{file.count} ({file.path})",
        str(package.num_long_functions),
    )


def _sources(root: Path, package: str) -> list[SourceFile]:
    files = sorted((root / package).rglob("*"))
    return [read_source(root, file) for file in files if file.suffix in SUFFIXES]


def _package(
    root: Path,
    name: str,
    files: Sequence[SourceFile],
    circles: Sequence[tuple[str, ...]],
) -> Package:
    functions = [one for file in files for one in file.functions]
    return Package(
        name=name,
        num_root_files=_num_files(root / name, SUFFIXES),
        largest_folder=_largest_folder(root, name),
        num_circles=sum(any(file.startswith(f"{name}/") for file in one) for one in circles),
        num_lines=sum(file.num_lines for file in files),
        num_code_lines=sum(file.num_code_lines for file in files),
        largest_file=_largest((file.path, file.num_lines) for file in files),
        num_long_functions=sum(one.num_lines > LONG_FUNCTION_LINES for one in functions),
    )


def _largest_folder(root: Path, package: str) -> Largest:
    ours = folders(root, [package])
    return _largest((str(one.relative_to(root)), _num_files(one, (".py", ".c"))) for one in ours)


def _largest(counts: Iterable[tuple[str, int]]) -> Largest:
    path, count = max(counts, key=lambda pair: (pair[1], pair[0]))
    return Largest(path=path, count=count)


def _num_files(folder: Path, suffixes: Sequence[str]) -> int:
    files = (file for file in folder.iterdir() if file.suffix in suffixes)
    return sum(file.name != "__init__.py" for file in files)


def _circle_files(root: Path) -> tuple[tuple[str, ...], ...]:
    files = module_files(root)
    circles = import_circles(import_graph(root))
    return tuple(tuple(str(files[name].relative_to(root)) for name in one) for one in circles)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.tree", description=__doc__)
    here = Path(__file__).resolve().parent.parent
    parser.add_argument("--repo", type=Path, default=here, help="the checkout to measure")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON object")
    form.add_argument("--map", action="store_true", help="every folder and its sentence")
    return parser.parse_args()


def main() -> None:
    """Print what the arguments ask for; limits are for the tests to keep, so it never fails."""
    arguments = _arguments()
    if arguments.map:
        print("\n".join(map_lines(arguments.repo)))
        return
    house = measure(arguments.repo)
    if arguments.json:
        print(json.dumps(asdict(house), indent=1))
        return
    over = [f"over its limit: {line}" for line in excesses(house)]
    print("\n".join([*table_lines(house), *over]))


if __name__ == "__main__":
    main()
