"""When a request moves on to other workers, and how often the fleet may bear that."""
