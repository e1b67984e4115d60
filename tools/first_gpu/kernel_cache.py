"""Compiled kernels as one file, so that the next stage, or machine, need not compile them.

Triton names what it compiled by a hash of source, options and its own version: what does not fit is
never found. Only a file that you made yourself is to be unpacked, for its contents are run.
"""

import tarfile
from collections.abc import Iterable
from pathlib import Path

NAME = "kernel-cache.tar.gz"


def pack(folder: Path, file: Path) -> int:
    """How many kernels; no file where there are none. An existing one is replaced as a whole."""
    kernels = [one for one in sorted(folder.glob("*")) if one.is_dir()]
    if not kernels:
        return 0
    draft = file.with_suffix(".draft")
    with tarfile.open(draft, "w:gz", compresslevel=1) as archive:
        for kernel in kernels:
            archive.add(kernel, arcname=kernel.name)
    draft.replace(file)
    return len(kernels)


def unpack(files: Iterable[Path], folder: Path) -> Path | None:
    """The first of `files` that is there, unpacked into a folder that has no kernels yet."""
    if any(folder.glob("*")):
        return None
    for file in files:
        if file.is_file():
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with tarfile.open(file) as archive:
                archive.extractall(folder, filter="data")
            return file
    return None
