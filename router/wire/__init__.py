"""HTTP/1.1 on a socket: connections and their bounds, and what never becomes a request."""
