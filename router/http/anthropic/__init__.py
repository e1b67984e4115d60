"""Messages of Anthropic's API given to a client, whole or as events."""
