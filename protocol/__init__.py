"""All that two processes must agree on: words, messages, the KV layout. Never imports torch."""
