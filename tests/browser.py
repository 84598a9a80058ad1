"""Pages in a headless Chromium, by its DevTools protocol; a test that asks is skipped where there is none."""

from __future__ import annotations

import asyncio
import base64
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import pytest
from patience import PATIENCE_S, wait_until

T = TypeVar("T")
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
KEYS = {"Tab": 9, "Enter": 13, " ": 32, "ArrowLeft": 37, "ArrowRight": 39}
"""Windows' code of a key, which the protocol wants."""


class Page:
    """One page, at a size and in a theme.

    Attributes:
        errors: what the page logged as an error, or threw, since it was opened.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._loop, self._socket, self._sent = loop, socket, 0
        self._session: str | None = None
        self._seen: set[str] = set()
        self.errors: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """A command of the protocol."""
        return self._loop.run_until_complete(self._call(method, params))

    async def _call(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        self._sent += 1
        sent = {"id": self._sent, "method": method, "params": params}
        await self._socket.send_json(sent | ({"sessionId": self._session} if self._session else {}))
        while True:
            said = await self._socket.receive_json(timeout=PATIENCE_S)
            if said.get("id") == self._sent:
                assert "error" not in said, said
                return said["result"]
            self._hear(said)

    def _hear(self, said: dict[str, Any]) -> None:
        name, told = said.get("method", ""), said.get("params", {})
        self._seen.add(name)
        if name == "Runtime.exceptionThrown":
            self.errors.append(str(told["exceptionDetails"]))
        elif name == "Log.entryAdded" and told["entry"]["level"] == "error":
            self.errors.append(told["entry"]["text"])
        elif name == "Runtime.consoleAPICalled" and told["type"] == "error":
            self.errors.append(str(told["args"]))

    def open(self, path: Path, width: int, height: int = 900, *, theme: str = "light", anchor: str = "") -> None:
        """Open a file; comes back when it is loaded."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.emulate(theme)
        self.errors.clear()
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=path.resolve().as_uri() + anchor)
        self.wait("location.protocol == 'file:' && document.readyState == 'complete'")

    def emulate(self, theme: str, media: str = "screen") -> None:
        """A theme, and on what the page is shown."""
        features = [
            {"name": "prefers-color-scheme", "value": theme},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]
        self.call("Emulation.setEmulatedMedia", media=media, features=features)

    def run(self, script: str) -> Any:
        """The value of an expression on the page; a promise's is waited for."""
        done = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def wait(self, condition: str) -> None:
        """Come back when an expression holds, of whatever page is there by then."""
        wait_until(lambda: self.run(condition), lambda: condition)

    def click(self, selector: str) -> None:
        """A click of the mouse in the middle of the first element of a CSS selector."""
        found = f"document.querySelector({selector!r})"
        self.run(f"{found}.scrollIntoView({{block: 'center'}})")
        box = self.run(
            f"(({{x, y, width, height}}) => ({{x: x + width / 2, y: y + height / 2}}))({found}.getBoundingClientRect())"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **box)

    def press(self, key: str) -> None:
        """A key that goes down and up."""
        text = {"text": {"Enter": "\r", " ": " "}[key]} if key in ("Enter", " ") else {}
        told = {"key": key, "code": "Space" if key == " " else key, "windowsVirtualKeyCode": KEYS[key]}
        self.call("Input.dispatchKeyEvent", type="keyDown", **told, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **told)

    def picture(self, path: Path, *, whole: bool = False) -> None:
        """A PNG of what is seen, or of the whole page."""
        data = self.call("Page.captureScreenshot", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))

    def pdf(self) -> bytes:
        """The page as it is printed."""
        return base64.b64decode(self.call("Page.printToPDF", printBackground=False)["data"])


@contextmanager
def browser() -> Iterator[Page]:
    """A page of a Chromium that ends with the block; the test is skipped where none is installed."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        options = ["--headless", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-port=0", "--no-first-run"]
        options += ["--no-sandbox"] if os.geteuid() == 0 else []
        said = Path(folder, "stderr")
        with said.open("wb") as stream:  # a file, for a pipe would fill up, and keep this process's own open
            started = subprocess.Popen(
                [program, *options, f"--user-data-dir={folder}", "about:blank"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stream,
                start_new_session=True,
            )
        loop = asyncio.new_event_loop()
        try:
            wait_until(lambda: "DevTools listening on ws" in said.read_text(), said.read_text)
            address = re.findall(r"DevTools listening on (\S+)", said.read_text())[0]
            session, socket = loop.run_until_complete(_connect(address))
            try:
                yield Page(loop, socket)
            finally:
                loop.run_until_complete(_all(socket.close(), session.close()))
        finally:
            os.killpg(started.pid, signal.SIGKILL)  # its helpers too, which are of its own session
            started.wait()
            loop.close()


async def _connect(address: str) -> tuple[aiohttp.ClientSession, aiohttp.ClientWebSocketResponse]:
    session = aiohttp.ClientSession()
    return session, await session.ws_connect(address, max_msg_size=0)


async def _all(*things: Coroutine[Any, Any, object]) -> None:
    for thing in things:
        await thing
