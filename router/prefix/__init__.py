"""Which worker holds which blocks: a local replica, fed by events, answered without an await."""
