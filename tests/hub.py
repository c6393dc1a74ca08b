"""As much of the Hugging Face hub's API as its client needs to fetch a repository, from directories on this machine."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

OnGet = Callable[[Path], None]


class Hub:
    """A running hub: `url`, the repositories it has, and the paths that were asked for."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.repositories: dict[str, Path] = {}
        self.requests: list[str] = []
        self.on_get: OnGet = lambda file: None

    def revision(self, repository: str) -> str:
        """The only commit of a repository."""
        return hashlib.sha1(repository.encode(), usedforsecurity=False).hexdigest()


@contextmanager
def hub() -> Iterator[Hub]:
    """A hub on a free port."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(whole=True)

        def do_HEAD(self) -> None:
            self._answer(whole=False)

        def log_message(self, *_: object) -> None:
            pass

        def _answer(self, whole: bool) -> None:
            path = urlsplit(self.path).path
            running.requests.append(f"{self.command} {path}")
            for name, folder in running.repositories.items():
                sha = running.revision(name)
                if path in (
                    f"/api/models/{name}",
                    f"/api/models/{name}/revision/main",
                    f"/api/models/{name}/revision/{sha}",
                ):
                    self._json({"id": name, "modelId": name, "sha": sha, "siblings": []})
                    return
                if path == f"/api/models/{name}/tree/{sha}":
                    self._json([_entry(file) for file in sorted(folder.iterdir())])
                    return
                file = folder / path.rpartition("/")[2]
                if path.startswith(f"/{name}/resolve/") and file.is_file():
                    self._file(file, sha, whole)
                    return
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})

        def _json(self, data: object) -> None:
            self._send(200, json.dumps(data).encode(), {"Content-Type": "application/json"})

        def _file(self, file: Path, sha: str, whole: bool) -> None:
            data = file.read_bytes()
            headers = {"X-Repo-Commit": sha, "ETag": f'"{_digest(file)}"', "Accept-Ranges": "bytes"}
            if not whole:
                self._send(200, b"", {**headers, "Content-Length": str(len(data))})
                return
            running.on_get(file)
            start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
            if start:
                headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            self._send(206 if start else 200, data[start:], headers)

        def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        running = Hub(f"http://127.0.0.1:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield running
        finally:
            server.shutdown()
            thread.join()


def _entry(file: Path) -> dict[str, object]:
    return {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": _digest(file)}


def _digest(file: Path) -> str:
    return hashlib.sha1(file.read_bytes(), usedforsecurity=False).hexdigest()
