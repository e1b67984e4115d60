"""Chat templates: where they are, what they are shown, and a sandbox that meters them."""
