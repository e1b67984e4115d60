"""TCP between hosts: lanes, credit and frames; the source writes."""
