"""A router of several processes: who starts and ends them, and how they ask each other."""
