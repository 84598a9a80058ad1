"""Servers that a test starts on loopback: S3, ssh and http."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from patience import PATIENCE_S, wait_until


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    def answers() -> bool:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            return False
        return True

    wait_until(lambda: server.poll() is not None or answers())
    if server.poll() is not None:
        raise OSError(f"the server on port {port} did not start")


@contextmanager
def _running(command: list[str], port: int) -> Iterator[None]:
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(port, server)
        yield
    finally:
        server.terminate()
        server.wait(timeout=PATIENCE_S)


@contextmanager
def s3(bucket: str) -> Iterator[str]:
    """moto's S3 with an empty bucket; yields the endpoint."""
    port = _free_port()
    with _running([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], port):
        endpoint = f"http://127.0.0.1:{port}"
        urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{bucket}", method="PUT")).close()
        yield endpoint


@contextmanager
def sshd(folder: Path) -> Iterator[tuple[int, Path]]:
    """A private sshd; yields its port and the user's key. Skips the test where there is none."""
    program = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")
    if program is None or shutil.which("ssh-keygen") is None:
        pytest.skip("no sshd here: apt-get install openssh-server")
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    port, config = _free_port(), folder / "sshd_config"
    (folder / "authorized").write_text((folder / "user.pub").read_text())
    config.write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized\n"
        f"PidFile {folder}/pid\nPasswordAuthentication no\nUsePAM no\nStrictModes no\nPermitRootLogin yes\n"
        f"Subsystem sftp internal-sftp\nAllowUsers {getpass.getuser()}\n"
    )
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd refuses to start as root without it
    checked = subprocess.run([program, "-t", "-f", str(config)], capture_output=True, text=True)
    if checked.returncode:
        pytest.skip(f"sshd cannot start here: {checked.stderr.strip()}")
    with _running([program, "-D", "-f", str(config)], port):
        yield port, folder / "user"


class _Handler(SimpleHTTPRequestHandler):
    """Serves a directory, tells `asked` about every GET, and prints nothing."""

    def __init__(self, *arguments: object, asked: Callable[[str], None], **options: object) -> None:
        self._asked = asked
        super().__init__(*arguments, **options)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        self._asked(self.path)
        super().do_GET()

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


@contextmanager
def http(folder: Path, asked: Callable[[str], None] = lambda path: None) -> Iterator[str]:
    """A read-only server of a directory; yields its URL. `asked` is called before each file is sent."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, directory=str(folder), asked=asked))
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
