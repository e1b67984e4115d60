"""Answers in the shapes of OpenAI: chats, completions and embeddings, whole or streamed."""
