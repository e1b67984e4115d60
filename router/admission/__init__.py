"""Where requests wait while every worker is full: whose turn is next, and who is sent away."""
