"""A local server that answers as Hugging Face's hub does when repositories are listed and read."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import HfFileSystem, constants

from teacher_cache.files import remote

COMMIT = "0123456789abcdef0123456789abcdef01234567"
API = re.compile(r"/api/(?:models|datasets)/(org/\w+)(?:/(\w[\w-]*)(?:/(main|v2))?(?:/(.*))?)?")
FILE = re.compile(r"/(?:datasets/)?(org/\w+)/resolve/(main|v2)/(.*)")


@dataclass
class Hub:
    """Repositories as folders `org/NAME`, data sets and models alike.

    Attributes:
        tokens: the token that a repository needs.
        gated: repositories whose files are refused.
        failing: status of the next answers.
        requests: (method, path) in order.
        sent: bytes of files.
    """

    folder: Path
    url: str = ""
    tokens: dict[str, str] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    failing: list[int] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    sent: int = 0


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append((self.command, path))
            asked = API.fullmatch(path) or FILE.fullmatch(path)
            if asked is None:  # the library asks for more than repositories
                return self._answer(b"", 404)
            if hub.failing:
                return self._answer(b"", hub.failing.pop(0))
            name = asked[1]
            token = hub.tokens.get(name)
            if not (hub.folder / name).is_dir() or (
                token and self.headers.get("Authorization") != f"Bearer {token}"
            ):
                return self._answer(b"", 401, {"X-Error-Code": "RepoNotFound"})
            if path.startswith("/api/"):
                return self._list(name, asked[2], asked[4] or "")
            if name in hub.gated:
                return self._answer(b"", 403, {"X-Error-Code": "GatedRepo"})
            return self._file(hub.folder / name / asked[3])

        do_HEAD = do_GET

        def _list(self, name: str, what: str | None, path: str) -> None:
            if what in (None, "revision"):
                return self._answer({"id": name, "sha": COMMIT, "private": False, "gated": False, "tags": []})
            place = hub.folder / name / path
            if what == "tree" and place.is_dir():
                every = place.rglob("*") if "recursive=true" in self.path.lower() else place.iterdir()
                return self._answer([self._entry(hub.folder / name, one) for one in sorted(every)])
            return self._answer(b"", 404, {"X-Error-Code": "EntryNotFound"})

        def _entry(self, root: Path, path: Path) -> dict[str, object]:
            entry = {"path": path.relative_to(root).as_posix(), "size": 0, "oid": "d"}
            if path.is_dir():
                return {**entry, "type": "directory"}
            content = path.read_bytes()
            oid = hashlib.sha1(content).hexdigest()
            return {**entry, "type": "file", "size": len(content), "oid": oid}

        def _file(self, path: Path) -> None:
            if not path.is_file():
                return self._answer(b"", 404, {"X-Error-Code": "EntryNotFound"})
            content = path.read_bytes()
            headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "Accept-Ranges": "bytes"}
            asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            if not asked:
                return self._answer(content, 200, headers)
            first, last = int(asked[1]), min(int(asked[2]), len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            return self._answer(content[first : last + 1], 206, headers)

        def _answer(self, content: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in {"X-Repo-Commit": COMMIT, **(headers or {})}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                hub.sent += len(body) if isinstance(content, bytes) else 0
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler


@contextmanager
def running_hub(folder: Path) -> Iterator[Hub]:
    hub = Hub(folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub)) as http:
        hub.url = f"http://127.0.0.1:{http.server_address[1]}"
        threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
        yield hub
        http.shutdown()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub of `tmp_path / "hub"`, without a login, and pauses that a test can wait for."""
    with running_hub(tmp_path / "hub") as hub:
        monkeypatch.setattr(remote, "RETRY_AFTER_SECONDS", (0.01, 0.01))
        monkeypatch.setattr(remote, "_filesystems", {})
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        HfFileSystem.clear_instance_cache()
        yield hub
        HfFileSystem.clear_instance_cache()
