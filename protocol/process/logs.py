"""Logs of a process: events with fields as JSON lines, the request's id from context."""

import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TextIO

import msgspec

_request: ContextVar[str] = ContextVar("request", default="")
_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


@contextmanager
def request_context(request: str) -> Iterator[None]:
    """Log lines written inside carry this request id."""
    token = _request.set(request)
    try:
        yield
    finally:
        _request.reset(token)


class JsonFormatter(logging.Formatter):
    """One JSON object a line. What JSON cannot hold is written as its `str`."""

    def __init__(self, *, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": round(record.created, 6),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            "process": self._process,
        }
        if request := _request.get():
            line["request"] = request
        line |= {key: value for key, value in record.__dict__.items() if key not in _STANDARD}
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line, enc_hook=str).decode()


def configure_logging(*, process: str, level: str = "info", stream: TextIO | None = None) -> None:
    """All of this process's logs, and nothing else, go to `stream` (stderr)."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter(process=process))
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())


class LoadProgress:
    """Logs `loading` events with bytes done and in total, at most four a second."""

    def __init__(self, log: logging.Logger, *, interval_s: float = 0.25) -> None:
        self._log = log
        self._interval_s = interval_s
        self._next = 0.0
        self._lock = threading.Lock()

    def __call__(self, done: int, total: int) -> None:
        with self._lock:
            now = time.monotonic()
            if now < self._next and done < total:
                return
            self._next = now + self._interval_s
        self._log.info("loading", extra={"done": done, "total": total})
