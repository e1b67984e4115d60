"""All that two processes must agree on, free of torch: words, messages, the KV layout."""
