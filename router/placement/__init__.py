"""Where a request goes: pure functions of the candidates and of the prefix index."""
