"""Formats as tables, a kind a file: of calls, and of reasoning."""
