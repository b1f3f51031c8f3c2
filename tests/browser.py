"""Headless Chromium, driven through its DevTools protocol: pages are opened, measured and clicked."""

import asyncio
import base64
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import aiohttp
import pytest

from tests.peers import MISSING

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_START, _ANSWER = 60, 60  # seconds


def require_chromium():
    """Skip the tests of a file without Chromium; with `REQUIRE_PEERS=1` in the environment they fail."""
    __tracebackhide__ = True
    if CHROMIUM is None:
        reason = f"{MISSING}: chromium; to install it as root: sh tests/install_chromium.sh"
        if os.environ.get("REQUIRE_PEERS") == "1":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason, allow_module_level=True)


class ProtocolError(Exception):
    """A command that the browser refuses."""


class Browser:
    """A browser without a network, with one page.

    Args:
        profile: folder for its profile.
        width: width of the window in pixels.
        height: height of the window in pixels.
    """

    def __init__(self, profile: Path, width: int = 1366, height: int = 768) -> None:
        self.errors: list[str] = []  # errors and warnings of the console, exceptions, and refused requests
        self._loop = asyncio.new_event_loop()
        self._number = 0
        command = [
            CHROMIUM,
            "--headless=new",
            "--no-sandbox",  # tests may run as root in a container
            "--disable-gpu",
            "--hide-scrollbars",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            "--remote-debugging-port=0",
            f"--user-data-dir={profile}",
            f"--window-size={width},{height}",
            "about:blank",
        ]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._loop.run_until_complete(self._connect(profile / "DevToolsActivePort"))
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def send(self, method, **parameters):
        """Return the result of a command of the protocol."""
        return self._loop.run_until_complete(self._send(method, parameters))

    def open(self, path, theme="light", ready="document.documentElement?.dataset.ready", seconds=30):
        """Open a file, wait until it is ready, and return the seconds that it took; its address may have a fragment."""
        self.errors.clear()
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
        self.send("Page.navigate", url="about:blank")
        start = time.monotonic()
        url, _, fragment = str(path).partition("#")
        self.send("Page.navigate", url=Path(url).resolve().as_uri() + (f"#{fragment}" if fragment else ""))
        self.wait_for(ready, seconds)
        return time.monotonic() - start

    def wait_for(self, expression, seconds=30):
        """Wait until an expression is true."""
        until = time.monotonic() + seconds
        while not self._is_true(expression):
            assert time.monotonic() < until, f"not true after {seconds} seconds: {expression}; {self.errors}"
            time.sleep(0.05)

    def _is_true(self, expression):
        try:
            return self.run(expression)
        except ProtocolError:  # between two pages there is none to ask
            return False

    def run(self, expression):
        """Return the value of a JavaScript expression, as JSON can hold it; promises are awaited."""
        parameters = {"expression": expression, "returnByValue": True, "awaitPromise": True}
        result = self.send("Runtime.evaluate", **parameters)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def move_to(self, selector, index=0):
        """Move the pointer to the middle of an element."""
        box = self.run(
            f"(() => {{ const element = document.querySelectorAll({json.dumps(selector)})[{index}];"
            "element.scrollIntoView({ block: 'nearest' }); const box = element.getBoundingClientRect();"
            "return [box.left + box.width / 2, box.top + box.height / 2]; })()"
        )
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=box[0], y=box[1])

    def screenshot(self, path):
        """Write what the window shows to a PNG file."""
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))

    def close(self):
        """End the browser."""
        self._loop.run_until_complete(self._session.close())
        self._process.terminate()
        self._process.wait(30)
        self._loop.close()

    async def _connect(self, port_file):
        until = time.monotonic() + _START
        while not port_file.exists() or not port_file.read_text().strip():
            assert self._process.poll() is None, "Chromium has ended"
            assert time.monotonic() < until, "Chromium does not start"
            await asyncio.sleep(0.1)
        port = port_file.read_text().split()[0]
        self._session = aiohttp.ClientSession()
        async with self._session.get(f"http://127.0.0.1:{port}/json/list") as answer:
            page = next(target for target in await answer.json() if target["type"] == "page")
        self._socket = await self._session.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=0)

    async def _send(self, method, parameters):
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        while True:
            message = await self._socket.receive_json(timeout=_ANSWER)
            if message.get("id") == self._number:
                if "error" in message:
                    raise ProtocolError(message["error"])
                return message["result"]
            self._note(message)

    def _note(self, event):
        """Keep an event that tells of an error."""
        parameters = event.get("params", {})
        if event["method"] == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(parameters["exceptionDetails"]))
        elif event["method"] == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning", "assert"):
            self.errors.append(json.dumps(parameters["args"]))
        elif event["method"] == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
            self.errors.append(parameters["entry"]["text"])
        elif event["method"] == "Network.requestWillBeSent":
            url = parameters["request"]["url"]
            if not url.startswith(("file:", "data:", "about:")):
                self.errors.append(f"request: {url[:200]}")
