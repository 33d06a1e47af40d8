import hashlib
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from fastmeta.episodes.images.download import cache_folder, fetch, written_whole

CONTENT = b"0123456789" * 20_000
MD5 = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """`/whole` is the content, `/short` ends too early, `/gone` is not there."""

    def do_GET(self):
        self.send_response(404 if self.path == "/gone" else 200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT if self.path == "/whole" else CONTENT[:1000])

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with HTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def test_a_file_arrives_whole(server, tmp_path):
    target = tmp_path / "new" / "file.zip"
    fetch(f"{server}/whole", target, md5=MD5)
    assert target.read_bytes() == CONTENT
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize(
    ("page", "md5", "error", "message"),
    [
        ("short", MD5, OSError, "/short was not downloaded: .* 1000 of 200000 bytes"),
        ("gone", MD5, OSError, "/gone was not downloaded: .*404"),
        ("whole", "0" * 32, ValueError, f"/whole has MD5 {MD5}, but 0+ was published"),
    ],
)
def test_what_is_not_right_is_not_kept(server, tmp_path, page, md5, error, message):
    target = tmp_path / "file.zip"
    target.write_bytes(b"before")
    with pytest.raises(error, match=message):
        fetch(f"{server}/{page}", target, md5=md5)
    assert target.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [target]


def test_nobody_answers(server, tmp_path):
    with pytest.raises(OSError, match="was not downloaded"):
        fetch("http://127.0.0.1:1/x", tmp_path / "file", md5=MD5)
    assert not list(tmp_path.iterdir())


def test_an_interrupt_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        with written_whole(tmp_path / "file") as file:
            file.write(b"half")
            raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_the_cache_folder_can_be_moved(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "fastmeta"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "fastmeta"
