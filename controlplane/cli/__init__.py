"""The `baton` command and what it says to a person."""
