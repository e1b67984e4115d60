"""What every JSON object that is answered is, as a type."""

import msgspec


class JsonShape(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A JSON object that has these fields alone."""
