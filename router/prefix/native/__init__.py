"""The C side of the prefix index: sets of holders, a table of blocks, and walks along a chain."""
