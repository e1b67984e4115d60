"""The hub as its library sees it: a cache on the disk, and its endpoints on loopback."""

import hashlib
import json
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

COMMIT, OTHER = "a" * 40, "b" * 40


def fill_cache(
    home: Path, folder: Path, *, name: str, commit: str = COMMIT, ref: str | None = "main"
) -> Path:
    """A snapshot of `folder` in the cache below HF_HOME, as the library lays it out: contents as
    blobs by their digest, links to them, and a ref. Gives the snapshot."""
    repo = home / "hub" / f"models--{name.replace('/', '--')}"
    snapshot = repo / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repo / "blobs").mkdir(exist_ok=True)
    for file in folder.iterdir():
        blob = repo / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        blob.write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(Path("../../blobs") / blob.name)
    if ref is not None:
        (repo / "refs").mkdir(exist_ok=True)
        (repo / "refs" / ref).write_text(commit)
    return snapshot


class HubServer(ThreadingHTTPServer):
    """Repositories by name, each with its revisions' files; some ask for a token."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, dict[str, Mapping[str, bytes]]] = {}
        """By name, then by commit: files."""
        self.refs: dict[str, str] = {"main": COMMIT}
        self.gated: set[str] = set()
        self.sent: list[str] = []
        """Files whose contents were asked for."""
        self.tokens: set[str] = set()
        self.looks: list[str] = []
        """Models that were asked for."""
        self.lists: dict[str, bytes] = {}
        """Files beside the hub's, by path."""
        self.ranges: list[str] = []
        """Of requests that asked for the rest of a file."""
        self.cut_at: dict[str, int] = {}
        """Files of which a connection brings so many bytes in all, then ends; once."""
        self.held: dict[str, threading.Event] = {}
        """Files whose second half waits for this."""
        self.false_sha256: dict[str, str] = {}
        """What is said of files, in place of the truth."""

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # whoever asked has had enough
            super().handle_error(request, client_address)  # type: ignore[arg-type]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def put(self, name: str, folder: Path, *, commit: str = COMMIT) -> None:
        files = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
        self.repos.setdefault(name, {})[commit] = files


@contextmanager
def hub_server() -> Iterator[HubServer]:
    with HubServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self, *, body: bool) -> None:
        token = self.headers.get("authorization", "")
        self.server.tokens |= {token} if token else set()
        if (text := self.server.lists.get(self.path)) is not None:
            self._send_file("", self.path, text, body=body)
            return
        parts = [unquote(part) for part in self.path.partition("?")[0].strip("/").split("/")]
        api = parts[:2] == ["api", "models"]
        name, *rest = (
            ["/".join(parts[2:4]), *parts[4:]] if api else ["/".join(parts[:2]), *parts[2:]]
        )
        self.server.looks += [name] if api else []
        commits = self.server.repos.get(name)
        if commits is None:
            self._refuse(401, "RepoNotFound")
        elif name in self.server.gated and not token:
            self._refuse(401, "GatedRepo")
        elif (commit := self._commit(rest)) not in commits:
            self._refuse(404, "RevisionNotFound")
        elif api and rest[:1] == ["tree"]:
            self._send_json([_entry(*item) for item in commits[commit].items()])
        elif api:
            siblings = [self._sibling(*item) for item in commits[commit].items()]
            self._send_json({"id": name, "modelId": name, "sha": commit, "siblings": siblings})
        elif (file := "/".join(rest[2:])) not in commits[commit]:
            self._refuse(404, "EntryNotFound")
        else:
            self._send_file(commit, file, commits[commit][file], body=body)

    def _commit(self, rest: list[str]) -> str:
        asked = rest[1] if len(rest) > 1 else "main"
        return self.server.refs.get(asked, asked)

    def _send_json(self, value: object) -> None:
        text = json.dumps(value).encode()
        self._head(200, len(text), {"Content-Type": "application/json"})
        self.wfile.write(text)

    def _send_file(self, commit: str, file: str, text: bytes, *, body: bool) -> None:
        etag = f'"{hashlib.sha1(text).hexdigest()}"'
        headers = {"ETag": etag, "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        status, start, asked = 200, 0, self.headers.get("range", "")
        if body and asked:
            self.server.ranges.append(f"{file} {asked}")
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            if start >= len(text):
                self._refuse(416, "RangeNotSatisfiable")
                return
            status = 206
            headers["Content-Range"] = f"bytes {start}-{len(text) - 1}/{len(text)}"
        self._head(status, len(text) - start, headers)
        if body:
            self.server.sent.append(file)
            self._write(file, text, start)

    def _write(self, file: str, text: bytes, start: int) -> None:
        end = self.server.cut_at.pop(file, len(text))
        if (event := self.server.held.get(file)) is not None:
            half = len(text) // 2
            self.wfile.write(text[start:half])
            self.wfile.flush()
            event.wait()
            start = max(start, half)
        self.wfile.write(text[start:end])
        self.close_connection = end < len(text)

    def _sibling(self, file: str, text: bytes) -> dict[str, object]:
        """With its metadata; large files are in LFS."""
        blob = hashlib.sha1(f"blob {len(text)}\0".encode() + text).hexdigest()
        told: dict[str, object] = {"rfilename": file, "size": len(text), "blobId": blob}
        if file.endswith(".safetensors"):
            sha256 = self.server.false_sha256.get(file) or hashlib.sha256(text).hexdigest()
            told["lfs"] = {"size": len(text), "sha256": sha256, "pointerSize": 130}
        return told

    def _refuse(self, status: int, code: str) -> None:
        self._head(status, 0, {"X-Error-Code": code, "X-Error-Message": code})

    def _head(self, status: int, length: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(length), **headers}.items():
            self.send_header(name, value)
        self.end_headers()


def sha256_list(files: Mapping[str, bytes]) -> bytes:
    """As `sha256sum` prints it."""
    lines = (f"{hashlib.sha256(text).hexdigest()}  {name}\n" for name, text in files.items())
    return "".join(lines).encode()


def _entry(file: str, text: bytes) -> dict[str, object]:
    digest = hashlib.sha1(text).hexdigest()
    return {"type": "file", "path": file, "size": len(text), "oid": digest}
