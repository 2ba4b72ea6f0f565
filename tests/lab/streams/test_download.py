import hashlib
import io
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from holdfast.errors import DataFileError, OutputError
from holdfast.lab.streams import download as module
from holdfast.lab.streams.download import download

CONTENT = bytes(range(256)) * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
NOWHERE = "http://127.0.0.1:9/"  # the discard port: nothing listens


@contextmanager
def server(content, *, announced=None, status=200):
    """A mirror on this machine that has `content` under every name, and perhaps announces another length."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.send_header("Content-Length", str(len(content) if announced is None else announced))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format, *args):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{http.server_address[1]}/"
        finally:
            http.shutdown()
            thread.join()


@pytest.fixture
def mirror(tmp_path):
    """A mirror that is a folder."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    (folder / "digits.gz").write_bytes(CONTENT)
    return folder.as_uri() + "/"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache" / "mnist" / "digits.gz"


def test_a_file_is_fetched_into_folders_made_for_it(path):
    with server(CONTENT) as url:
        download(path, mirrors=[url], sha256=[SHA256])
    assert path.read_bytes() == CONTENT
    assert list(path.parent.iterdir()) == [path]


def test_any_of_the_digests_will_do(path, mirror):
    download(path, mirrors=[mirror], sha256=["0" * 64, SHA256])
    assert path.read_bytes() == CONTENT


def test_the_next_mirror_is_tried_after_a_failure_and_after_damage(path, mirror):
    with server(b"x" * 2 * len(CONTENT)) as damaged:
        download(path, mirrors=[NOWHERE, damaged, mirror], sha256=[SHA256])
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("content", "announced", "status", "reason"),
    [
        (b"edited", None, 200, f"sha256 {hashlib.sha256(b'edited').hexdigest()} of 6 bytes, expected {SHA256}"),
        (CONTENT[:1000], len(CONTENT), 200, f"sha256 {hashlib.sha256(CONTENT[:1000]).hexdigest()} of 1000 bytes"),
        (b"", None, 404, "HTTP Error 404: Not Found"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_left(path, content, announced, status, reason):
    with (
        server(content, announced=announced, status=status) as url,
        pytest.raises(DataFileError) as caught,
    ):
        download(path, mirrors=[url], sha256=[SHA256])
    assert str(caught.value).startswith(f"cannot download digits.gz: {url}digits.gz: {reason}")
    assert str(caught.value).endswith(f"Connect to the network, or put the file at {path} by hand.")
    assert list(path.parent.iterdir()) == []


def test_without_a_network_every_mirror_is_named(path):
    with pytest.raises(DataFileError) as caught:
        download(path, mirrors=[NOWHERE, "http://127.0.0.1:1/"], sha256=[SHA256])
    assert "http://127.0.0.1:9/digits.gz: " in str(caught.value)
    assert "; http://127.0.0.1:1/digits.gz: " in str(caught.value)
    assert list(path.parent.iterdir()) == []


class Interrupted(io.BytesIO):
    """A response that is cut short by the user after its first bytes."""

    headers: dict[str, str] = {}  # noqa: RUF012

    def read(self, size: int | None = -1) -> bytes:
        if self.tell():
            raise KeyboardInterrupt
        return super().read(1000)


def test_an_interrupted_download_leaves_nothing_behind(path, mirror, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(module, "urlopen", lambda url, timeout: Interrupted(CONTENT))
        with pytest.raises(KeyboardInterrupt):
            download(path, mirrors=[mirror], sha256=[SHA256])
    assert list(path.parent.iterdir()) == []
    download(path, mirrors=[mirror], sha256=[SHA256])
    assert path.read_bytes() == CONTENT


def test_a_place_that_cannot_be_written_is_named(tmp_path, mirror):
    (tmp_path / "cache").write_text("a file where a folder should be")
    path = tmp_path / "cache" / "digits.gz"
    with pytest.raises(OutputError) as caught:
        download(path, mirrors=[mirror], sha256=[SHA256])
    assert str(caught.value).startswith(f"cannot write {path}: ")
    assert str(caught.value).endswith("Free the place, or name another folder.")
    (tmp_path / "cache").unlink()
    download(path, mirrors=[mirror], sha256=[SHA256])
    assert path.exists()
