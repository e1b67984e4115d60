"""A checkpoint's text files as a worker sends them to routers: packed once, given in parts."""

from dataclasses import dataclass, field
from pathlib import Path

from protocol.messages import AskText, TextPart
from protocol.text.text_files import MAX_PART_BYTES, TextFiles


@dataclass(frozen=True, slots=True)
class PackedText:
    """As the files were when it was read, whatever becomes of them."""

    digest: str
    archive: bytes = field(repr=False)

    @classmethod
    def read(cls, folder: Path) -> "PackedText":
        """Of a checkpoint. Raises CheckpointError."""
        files = TextFiles.read(folder)
        return cls(files.digest, files.packed())

    def part(self, asked: AskText) -> TextPart:
        """What is sent for it: no part of none where it is of another text."""
        if asked.digest != self.digest:
            return TextPart(digest=asked.digest, index=asked.index, num_parts=0, data=b"")
        first = asked.index * MAX_PART_BYTES
        return TextPart(
            digest=self.digest,
            index=asked.index,
            num_parts=-(-len(self.archive) // MAX_PART_BYTES),
            data=self.archive[first : first + MAX_PART_BYTES] if first >= 0 else b"",
        )
