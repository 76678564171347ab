"""A real HTTP server on loopback with all the ways in which a server can fail."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stainbridge.registry import Weight
from stainbridge.weights import Store


@dataclass
class Page:
    """What the server does with one address."""

    body: bytes = b""
    status: int = 200
    location: str = ""
    ranges: bool = True
    etag: str = '"first"'
    cut_after: int | None = None
    """Bytes after which each answer breaks off, although more were announced."""
    delay_s: float = 0.0
    drip_s: float = 0.0
    pause_after: int | None = None
    """Bytes after which nothing more comes for a minute."""
    announce: bool = True
    """Send Content-Length."""


@dataclass
class Server:
    url: str = ""
    pages: dict[str, Page] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    """(path, Range header) of each request."""
    served: dict[str, int] = field(default_factory=dict)
    """Body bytes sent, by path."""
    stop: threading.Event = field(default_factory=threading.Event)

    def put(self, path: str, body: bytes = b"", **behaviour: Any) -> str:
        """Serve the body at /path in the way that the fields of `Page` say, and return the address."""
        self.pages[f"/{path}"] = Page(body, **behaviour)
        return f"{self.url}/{path}"

    @property
    def bytes_served(self) -> int:
        return sum(self.served.values())


class _Handler(BaseHTTPRequestHandler):
    books: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range", "")
        self.books.asked.append((self.path, wanted))
        page = self.books.pages.get(self.path, Page(status=404))
        self.books.stop.wait(page.delay_s)
        if page.location:
            self._head(302, {"Location": page.location, "Content-Length": "0"})
        elif page.status != 200:
            self._head(page.status, {"Content-Length": "0"})
        else:
            self._body(page, wanted)
        self.close_connection = True

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _body(self, page: Page, wanted: str) -> None:
        start = int(re.findall(r"\d+", wanted)[0]) if wanted and page.ranges else 0
        if self.headers.get("If-Range", page.etag) != page.etag:
            start = 0
        size = len(page.body)
        if start >= size > 0:
            return self._head(416, {"Content-Length": "0", "Content-Range": f"bytes */{size}"})
        headers = {"ETag": page.etag} if page.etag else {}
        if page.announce:
            headers["Content-Length"] = str(size - start)
        if start:
            headers["Content-Range"] = f"bytes {start}-{size - 1}/{size}"
        self._head(206 if start else 200, headers)
        return self._send(page, page.body[start:][: page.cut_after])

    def _send(self, page: Page, body: bytes) -> None:
        step = 1 if page.drip_s else 1 << 16
        for at in range(0, len(body), step):
            if page.pause_after is not None and at >= page.pause_after:
                self.books.stop.wait(60)
                return
            part = body[at : at + step]
            # Booked first: the client may look at the books as soon as it has the last byte.
            self.books.served[self.path] = self.books.served.get(self.path, 0) + len(part)
            try:
                self.wfile.write(part)
            except OSError:  # the client went away
                self.books.served[self.path] -= len(part)
                return
            time.sleep(page.drip_s)

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    books = Server()
    http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"books": books}))
    http.daemon_threads = True
    books.url = f"http://127.0.0.1:{http.server_address[1]}"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield books
    books.stop.set()
    http.shutdown()
    http.server_close()
    thread.join()


@pytest.fixture
def content() -> bytes:
    """300 kB that do not compress."""
    return np.random.default_rng(3).bytes(300_000)


@pytest.fixture
def weight_of() -> Callable[..., Weight]:
    """Make the registry's entry of some content: (content, *sources, file=...)."""

    def make(content: bytes, *sources: str, file: str = "net.pt") -> Weight:
        return Weight(file=file, sha256=hashlib.sha256(content).hexdigest(), size=len(content), sources=sources)

    return make


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache", timeout_s=5)


@pytest.fixture
def tree() -> Callable[[Path], list[str]]:
    """List the files below a folder, relative."""
    return lambda folder: sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def local(tmp_path, content, weight_of):
    """A weight whose only source is a file."""
    (tmp_path / "copy.pt").write_bytes(content)
    return weight_of(content, f"file:{tmp_path / 'copy.pt'}")
