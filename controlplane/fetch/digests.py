"""Digests of files: SHA-256, and SHA-1 as git counts a blob."""

import hashlib
from pathlib import Path

_READ_BYTES = 4 << 20


class FileDigest:
    """Fed with a file's bytes in order."""

    def __init__(self, kind: str, *, num_bytes: int) -> None:
        """`kind` is that of `RemoteFile.digest`; git counts the length too."""
        if kind == "git":
            self._hash = hashlib.sha1(usedforsecurity=False)
            self._hash.update(f"blob {num_bytes}\0".encode())
        else:
            self._hash = hashlib.sha256()

    def add(self, chunk: bytes) -> None:
        self._hash.update(chunk)

    def add_file(self, file: Path, num_bytes: int) -> None:
        """The first `num_bytes` of a file; of none it need not be there."""
        if num_bytes == 0:
            return
        with file.open("rb") as stream:
            while num_bytes > 0 and (chunk := stream.read(min(_READ_BYTES, num_bytes))):
                self.add(chunk)
                num_bytes -= len(chunk)

    def hex(self) -> str:
        return self._hash.hexdigest()
