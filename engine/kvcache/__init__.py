"""Blocks of KV: who holds them, what they hold, which of them a window still sees."""
