"""Remote files: a web server with byte ranges, and fsspec's memory file system."""

import hashlib
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest

from teacher_cache.files import remote


@dataclass
class WebServer:
    """Serves a folder by ranges, records requests, and fails on demand.

    Attributes:
        requests: (method, file name) in order.
        sent: bytes of all answers.
        failures: how many of the next GET requests are answered by 503.
        ranges: False: send whole files whatever was asked for.
    """

    folder: Path
    url: str = ""
    requests: list[tuple[str, str]] = field(default_factory=list)
    sent: int = 0
    failures: int = 0
    ranges: bool = True

    def gets(self) -> list[str]:
        """Names of the files that GET asked for."""
        return [name for method, name in self.requests if method == "GET"]


def _handler(server: WebServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def log_message(self, format: str, *args: object) -> None:
            pass

        def _answer(self) -> None:
            path = server.folder / self.path.lstrip("/")
            server.requests.append((self.command, path.name))
            if self.command == "GET" and server.failures:
                server.failures -= 1
                return self.send_error(503)
            if not path.is_file():
                return self.send_error(404)
            content = path.read_bytes()
            asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            part = content
            if asked and server.ranges and self.command == "GET":
                first, last = int(asked[1]), min(int(asked[2]), len(content) - 1)
                part = content[first : last + 1]
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
            else:
                self.send_response(200)
            self.send_header("Content-Length", str(len(part)))
            self.send_header("ETag", hashlib.md5(content).hexdigest())
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(part)
                server.sent += len(part)
            return None

    return Handler


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    """A web server of `tmp_path / "web"`, and pauses between attempts that a test can wait for."""
    monkeypatch.setattr(remote, "RETRY_AFTER_SECONDS", (0.01, 0.01))
    folder = tmp_path / "web"
    folder.mkdir()
    server = WebServer(folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), _handler(server)) as http:
        server.url = f"http://127.0.0.1:{http.server_address[1]}"
        threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        http.shutdown()


@pytest.fixture
def memory() -> Iterator[str]:
    """URL of an empty folder in fsspec's memory; `upload` fills it."""
    files = fsspec.filesystem("memory")
    yield "memory://images"
    files.rm("/images", recursive=True)


def upload(folder: Path, url: str) -> None:
    """Copy a folder's files to a URL."""
    for path in folder.rglob("*"):
        if path.is_file():
            with fsspec.open(f"{url}/{path.relative_to(folder).as_posix()}", "wb") as file:
                file.write(path.read_bytes())
