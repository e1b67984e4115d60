"""What both kinds of worker share of moving KV: prefixes pulled and lent, and what is counted."""
