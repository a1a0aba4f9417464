"""A headless Chromium, driven through its DevTools protocol: pages are dragged, resized and darkened as by hand."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

try:
    from websockets.sync.client import ClientConnection, connect
except ImportError:
    connect = None

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None or connect is None, reason="chromium, or the Python package websockets, is not installed"
)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
    *("--remote-debugging-port=0", "--remote-allow-origins=*", "about:blank"),
)
START_S = 60
BOX = """(selector) => {
  const element = document.querySelector(selector);
  element.scrollIntoView({ block: "center" });
  const { x, y, width, height } = element.getBoundingClientRect();
  return [x, y, width, height];
}"""


class Page:
    """One page. complaints: errors that it wrote to the console or threw; loaded: addresses that it asked for."""

    def __init__(self, socket: ClientConnection, session: str) -> None:
        self._socket, self._session, self._number = socket, session, 0
        self.complaints: list[str] = []
        self.loaded: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One question, and its answer; what happens meanwhile is noted."""
        self._number += 1
        question = {"id": self._number, "method": method, "params": parameters, "sessionId": self._session}
        self._socket.send(json.dumps(question))
        while True:
            output = json.loads(self._socket.recv(timeout=START_S))
            if output.get("id") == self._number:
                assert "error" not in output, output
                return dict(output["result"])
            self._note(output.get("method"), output.get("params", {}))

    def _note(self, method: str | None, about: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            self.complaints.append(str(about["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and about["type"] in ("error", "warning", "assert"):
            self.complaints.append(str(about["args"]))
        elif method == "Log.entryAdded" and about["entry"]["level"] in ("error", "warning"):
            self.complaints.append(str(about["entry"]))
        elif method == "Network.requestWillBeSent":
            self.loaded.append(about["request"]["url"])

    def tell(self, expression: str) -> Any:
        """The value of an expression in the page."""
        result = self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def until(self, expression: str) -> Any:
        """The value of an expression, once it is true."""
        for _ in range(100 * START_S):
            if value := self.tell(expression):
                return value
            time.sleep(0.01)
        raise AssertionError(f"{expression}: not in {START_S} s")

    def open(self, file: Path, width: int = 1300, height: int = 1000, *, dark: bool = False) -> None:
        """Open a file in a window of some size."""
        mobile = width < 600
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.ask("Emulation.setEmulatedMedia", features=scheme)
        self.ask("Page.navigate", url=file.absolute().as_uri())
        self.until("document.readyState === 'complete'")

    def drag(self, selector: str, start: float, stop: float) -> None:
        """Press the mouse on an element at a share of its width, move it to another, let go."""
        x, y, width, height = self.tell(f"({BOX})({json.dumps(selector)})")
        places = [start + (stop - start) * i / 5 for i in range(6)]
        kinds = ["mousePressed", *["mouseMoved"] * 5, "mouseReleased"]
        for kind, place in zip(kinds, [*places, stop], strict=True):
            at = {"x": x + place * width, "y": y + height / 2}
            self.ask("Input.dispatchMouseEvent", type=kind, button="left", buttons=1, clickCount=1, **at)

    def press(self, key: str, code: int) -> None:
        """Press and let go of a key."""
        for kind in ("keyDown", "keyUp"):
            self.ask("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def picture(self, file: Path) -> None:
        """A PNG of the whole page."""
        shot = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(shot["data"]))


@contextmanager
def browser(folder: Path) -> Iterator[Page]:
    """A page in a Chromium of its own, whose profile lies in ``folder``."""
    assert CHROMIUM is not None
    process = subprocess.Popen(
        [CHROMIUM, *FLAGS, f"--user-data-dir={folder}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        port, path = _address(folder / "DevToolsActivePort", process)
        with connect(f"ws://127.0.0.1:{port}{path}", max_size=None, compression=None) as socket:
            yield Page(socket, _session(socket))
    finally:
        process.terminate()
        process.wait(timeout=START_S)


def _address(file: Path, process: subprocess.Popen[bytes]) -> tuple[str, str]:
    for _ in range(20 * START_S):
        if file.is_file() and len(lines := file.read_text().split("\n")) == 2:
            return lines[0], lines[1]
        assert process.poll() is None, "chromium ended"
        time.sleep(0.05)
    raise AssertionError(f"chromium did not answer in {START_S} s")


def _session(socket: ClientConnection) -> str:
    """Of the first tab."""

    def asked(number: int, method: str, **parameters: Any) -> dict[str, Any]:
        socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while (output := json.loads(socket.recv(timeout=START_S))).get("id") != number:
            pass
        return dict(output["result"])

    targets = asked(1, "Target.getTargets")["targetInfos"]
    (page,) = [one for one in targets if one["type"] == "page"]
    return str(asked(2, "Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"])
