"""Where a request goes: pure functions of the fleet's numbers and of what is cached where."""
