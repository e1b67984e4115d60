"""Builds all C kernels for the processors of an image, so that it needs no compiler.

    python -m tools.prebuild FOLDER
    python -m tools.prebuild FOLDER --target aarch64 --compiler aarch64-linux-gnu-gcc

By default for every target of this machine's kind, with its own compiler. A process finds them by
BATON_KERNELS=FOLDER, which nobody but root or its own user may write.
"""

import argparse
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

from engine.ops.cpu.build import KERNELS as ENGINE
from kvtransfer.native.library import KERNELS as COPIES
from protocol.process.kernels.c_kernels import Kernels, NoKernels, compiler
from protocol.process.kernels.targets import TARGETS, Target
from router.fast_path.native.library import KERNELS as FAST_PATH
from router.placement.kernel import KERNELS as PLACEMENT
from router.prefix.native.library import KERNELS as PREFIX

ALL: tuple[Kernels, ...] = (COPIES, ENGINE, FAST_PATH, PLACEMENT, PREFIX)


def prebuild(folder: Path, targets: Sequence[Target], *, compiler: str) -> list[Path]:
    """The libraries, each with its digest beside it. Raises NoKernels."""
    folder.mkdir(parents=True, exist_ok=True)
    return [
        kernels.prebuild(target, folder, compiler=compiler) for target in targets for kernels in ALL
    ]


def main(argv: Sequence[str]) -> int:
    asked = _arguments(argv)
    names = asked.target or [each.name for each in TARGETS if each.machine == platform.machine()]
    found = asked.compiler or compiler()
    if found is None or not names:
        print(f"prebuild: no compiler, or no target for {platform.machine()}", file=sys.stderr)
        return 1
    try:
        chosen = [each for each in TARGETS if each.name in names]
        built = prebuild(asked.folder, chosen, compiler=found)
    except NoKernels as error:
        print(f"prebuild: {error}", file=sys.stderr)
        return 1
    size = sum(library.stat().st_size for library in built)
    print(f"{len(built)} libraries, {size / 1e6:.1f} MB, for {', '.join(names)} in {asked.folder}")
    return 0


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--target", action="append", choices=[each.name for each in TARGETS])
    parser.add_argument("--compiler", help="by default this machine's own")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
