"""Anthropic's Messages API as data: its schemas, its conversations, its errors."""
