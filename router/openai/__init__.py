"""OpenAI's API as data: its schemas, what is refused by name, its errors."""
