"""What every JSON object that is answered is, as a type."""

import msgspec


class Answer(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A JSON object that has these fields alone."""
