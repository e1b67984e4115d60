"""A fleet in virtual time: a workload in, placements by several rules, what clients would see."""
