"""The HTTP surface: middleware, one exchange a request, answers as JSON or server-sent events."""
