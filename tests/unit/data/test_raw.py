"""Published files: found, downloaded from a real server on this machine, resumed, refused."""

import functools
import hashlib
import http.server
import os
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ipdiff.data.download import obtain, place
from ipdiff.data.spec import Archive
from ipdiff.errors import IntegrityError, UserError
from ipdiff.metrics.features import inception_file
from ipdiff.metrics.spec import Inception

DATA = bytes(range(256)) * 20_000
SHA256 = hashlib.sha256(DATA).hexdigest()


class Server(http.server.BaseHTTPRequestHandler):
    """Serves DATA: /whole (with ranges), /plain (without), /torn (breaks off), /unsaid (too, says no length), /page."""

    asked: list[tuple[str, str | None]]

    def do_GET(self):
        wanted = self.headers.get("Range")
        self.asked.append((self.path, wanted))
        if self.path == "/none":
            return self.send_error(404, "Not Found")
        body = b"<!DOCTYPE html><p>Sign in" if self.path == "/page" else DATA
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and self.path != "/plain" else 0
        if start and start >= len(body):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        if self.path != "/unsaid":
            self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        part = body[start:]
        self.wfile.write(part[: len(part) // 2] if self.path in ("/torn", "/unsaid") else part)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    handler = type("Fresh", (Server,), {"asked": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=functools.partial(running.serve_forever, 0.01), daemon=True).start()
        running.asked = handler.asked
        running.url = f"http://127.0.0.1:{running.server_port}"
        yield running
        running.shutdown()


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("IPDIFF_RAW", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def archive(**fields):
    return Archive(**{"file": "a.zip", "sha256": SHA256, "size": len(DATA), **fields})


def visible():
    return sorted(path.name for path in Path("raw").iterdir() if not path.name.startswith("."))


def refusal(wanted, kind=UserError):
    with pytest.raises(kind) as caught:
        obtain(wanted)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 292  # `ipdiff: ` comes before it
    return str(caught.value)


def test_a_missing_file_is_asked_for():
    text = refusal(archive(how="Ask its authors for it.", url=None))
    assert text == (
        "raw/a.zip is missing. Ask its authors for it. Put it there, or name the directory that has it in IPDIFF_RAW "
        f"(sha256 {SHA256})"
    )
    assert not Path("raw").exists()


@pytest.mark.parametrize("chosen", [None, "elsewhere/shared"])
def test_a_file_that_is_there(monkeypatch, chosen):
    if chosen:
        monkeypatch.setenv("IPDIFF_RAW", chosen)
    path = Path(chosen or "raw") / "a.zip"
    path.parent.mkdir(parents=True)
    path.write_bytes(DATA)
    assert place(archive()) == path
    assert obtain(archive(url="http://127.0.0.1:9/never-asked")) == path
    assert obtain(Archive(file="a.zip")) == path


def test_both_directories_are_looked_into(monkeypatch):
    Path("raw").mkdir()
    Path("raw/a.zip").write_bytes(DATA)
    monkeypatch.setenv("IPDIFF_RAW", "elsewhere")
    assert obtain(archive()) == Path("raw/a.zip")
    Path("elsewhere").mkdir()
    Path("elsewhere/a.zip").write_bytes(DATA)
    assert obtain(archive()) == Path("elsewhere/a.zip")
    assert place(Archive(file="b.zip")) == Path("elsewhere/b.zip")


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        (DATA[:-1], IntegrityError, f"expected {len(DATA)} bytes, found {len(DATA) - 1} bytes"),
        (DATA[:-1] + b"\0", IntegrityError, f"expected sha256 {SHA256}, found sha256 "),
        (b"\n<html><body>quota", UserError, "is not a.zip; it is an HTML page: a login"),
    ],
)
def test_a_file_that_is_another(content, kind, message):
    Path("raw").mkdir()
    Path("raw/a.zip").write_bytes(content)
    assert message in refusal(archive(url="http://127.0.0.1:9/never-asked"), kind)
    assert Path("raw/a.zip").read_bytes() == content
    Path("raw/a.zip").unlink()
    Path("raw/a.zip").mkdir()
    assert "raw/a.zip: is no file" in refusal(archive())


@pytest.mark.parametrize("size", [None, len(DATA)])
def test_download(server, size, capfd):
    assert obtain(archive(url=f"{server.url}/whole", size=size)).read_bytes() == DATA
    assert (visible(), server.asked) == (["a.zip"], [("/whole", None)])
    assert capfd.readouterr().err == ""
    assert obtain(archive(url=f"{server.url}/whole")).read_bytes() == DATA
    assert len(server.asked) == 1


def test_the_inception_network_is_got_the_same_way(server, monkeypatch):
    monkeypatch.delenv(inception_file.VARIABLE, raising=False)
    spec = Inception(sha256=SHA256, file="net.pt", url=f"{server.url}/whole")
    with pytest.raises(UserError, match="net.pt is missing: get it from http"):
        inception_file.find(spec)
    assert inception_file.obtain(spec) == Path("raw/net.pt")
    assert inception_file.find(spec).read_bytes() == DATA
    monkeypatch.setenv(inception_file.VARIABLE, "nowhere.pt")
    with pytest.raises(UserError, match="is 'nowhere.pt', where no file is"):
        inception_file.obtain(spec)
    assert len(server.asked) == 1


def test_mirrors_are_tried_in_turn(server, capsys):
    mirrors = [f"{server.url}/page", f"{server.url}/torn", f"{server.url}/whole", f"{server.url}/plain"]
    assert obtain(archive(url=f"{server.url}/none", mirrors=mirrors)).read_bytes() == DATA
    assert [path for path, _ in server.asked] == ["/none", "/page", "/torn", "/whole"]
    said = capsys.readouterr().err.splitlines()
    assert [line.rpartition(" now from ")[2] for line in said] == mirrors[:3]
    assert "404" in said[0]
    assert visible() == ["a.zip"]


def test_where_no_mirror_has_it_the_last_is_said(server):
    assert "404" in refusal(archive(url=f"{server.url}/page", mirrors=[f"{server.url}/none"]))
    with pytest.raises(ValueError, match="mirrors are given, but no url"):
        archive(mirrors=["http://127.0.0.1:9/x"])


def test_a_broken_download_goes_on_where_it_stopped(server):
    text = refusal(archive(url=f"{server.url}/torn"))
    assert "cannot be downloaded" in text
    assert "run again to go on" in text
    have = os.path.getsize("raw/a.zip.part")
    assert 0 < have < len(DATA)
    assert visible() == ["a.zip.part"]
    assert obtain(archive(url=f"{server.url}/whole")).read_bytes() == DATA
    assert server.asked[-1] == ("/whole", f"bytes={have}-")
    assert visible() == ["a.zip"]


def test_a_download_that_ends_early_without_a_word_goes_on(server):
    half = len(DATA) // 2
    text = refusal(archive(url=f"{server.url}/unsaid"))
    assert text == f"a.zip: ended early at {half} of {len(DATA)} bytes; run again to go on"
    assert os.path.getsize("raw/a.zip.part") == half
    assert obtain(archive(url=f"{server.url}/whole")).read_bytes() == DATA
    assert server.asked[-1] == ("/whole", f"bytes={half}-")


def test_a_file_that_is_smaller_than_it_should_be_is_dropped(server):
    Path("raw").mkdir()
    Path("raw/a.zip.part").write_bytes(DATA)
    text = refusal(archive(url=f"{server.url}/whole", size=len(DATA) + 1), IntegrityError)
    assert f"expected {len(DATA) + 1} bytes, found {len(DATA)} bytes" in text
    assert visible() == []


@pytest.mark.parametrize(("path", "size"), [("plain", len(DATA)), ("plain", None), ("whole", None)])
def test_a_part_that_is_whole_or_cannot_be_gone_on_with(server, path, size):
    Path("raw").mkdir()
    Path("raw/a.zip.part").write_bytes(DATA if path == "whole" else DATA[:1000])
    assert obtain(archive(url=f"{server.url}/{path}", size=size)).read_bytes() == DATA


@pytest.mark.parametrize("sha256", ["0" * 64, SHA256])
def test_a_download_of_another_digest_is_dropped(server, sha256):
    Path("raw").mkdir()
    if sha256 == SHA256:
        Path("raw/a.zip.part").write_bytes(b"x" * 1000)  # left by somebody else's download
    text = refusal(archive(url=f"{server.url}/whole", sha256=sha256), IntegrityError)
    assert text.startswith(f"a.zip as downloaded: expected sha256 {sha256}")
    assert visible() == []


def test_a_page_instead_of_the_file(server):
    assert "a.zip: the server offers 25 bytes (None), not" in refusal(archive(url=f"{server.url}/page"))
    text = refusal(archive(url=f"{server.url}/page", size=None, sha256=None))
    assert "a.zip as downloaded: is not a.zip; it is an HTML page" in text
    assert "a.zip" not in visible()


def test_no_server_and_no_such_file(server):
    long = "x" * 300
    for url in ("http://127.0.0.1:9/a.zip", f"http://127.0.0.1:9/{long}", f"{server.url}/none", "http://a..b/a.zip"):
        text = refusal(archive(url=url))
        assert text.startswith("a.zip: cannot be downloaded: ")
        assert "put it at raw/a.zip (or name its directory in IPDIFF_RAW)" in text


def test_jobs_that_want_the_same_file_wait_for_one(server):
    wanted = archive(url=f"{server.url}/whole")
    with ThreadPoolExecutor(6) as pool:
        assert {path.read_bytes() == DATA for path in pool.map(obtain, [wanted] * 6)} == {True}
    assert len(server.asked) == 1
    assert visible() == ["a.zip"]


def test_no_room_and_no_permission(server, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("", (), {"free": 10}))
    assert f"needs {len(DATA)} bytes more, 10 are free" in refusal(archive(url=f"{server.url}/whole"))
    Path("file").write_text("")
    monkeypatch.setenv("IPDIFF_RAW", "file/raw")
    assert "file/raw/a.zip: cannot be written" in refusal(archive(url=f"{server.url}/whole"))
