"""What the next step computes: pure, counts and tables only."""
