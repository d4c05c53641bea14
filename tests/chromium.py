"""A headless Chromium for tests, driven through the two pipes of its DevTools protocol: no library, no port.

Keys are pressed as a keyboard would, and what a page says on the console or asks the network for is written down.
"""

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path

KEY_CODES = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Tab": 9}
LONGEST = 60  # seconds to wait for an answer


class Chromium:
    """One browser with one tab. `complaints` and `requests` are of the page that was opened last."""

    def __init__(self, folder: Path):
        to_browser, from_browser = os.pipe(), os.pipe()
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
        flags += [
            "--remote-debugging-pipe",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--user-data-dir={folder}",
            "--force-device-scale-factor=1",
        ]
        # the browser reads from file descriptor 3 and writes to 4
        shell = f'exec "$0" "$@" 3<&{to_browser[0]} 4>&{from_browser[1]}'
        self.process = subprocess.Popen(
            ["bash", "-c", shell, shutil.which("chromium"), *flags, "about:blank"],
            pass_fds=(to_browser[0], from_browser[1]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser[0])
        os.close(from_browser[1])
        self.write_to, self.read_from = to_browser[1], from_browser[0]
        self.numbers, self.pending, self.session = itertools.count(1), b"", None
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.loaded = False
        while not (tabs := [t for t in self.ask("Target.getTargets")["targetInfos"] if t["type"] == "page"]):
            time.sleep(0.05)  # it is still starting
        self.session = self.ask("Target.attachToTarget", targetId=tabs[0]["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def close(self) -> None:
        try:
            self.session = None
            self.ask("Browser.close")
            self.process.wait(LONGEST)
        finally:
            self.process.kill()
            self.process.wait()
            os.close(self.write_to)
            os.close(self.read_from)

    def receive(self) -> dict:
        """The next message of the browser."""
        end = time.monotonic() + LONGEST
        while b"\0" not in self.pending:
            ready, _, _ = select.select([self.read_from], [], [], max(0, end - time.monotonic()))
            data = os.read(self.read_from, 1 << 20) if ready else b""
            if not data:
                raise RuntimeError("Chromium does not answer" if not ready else "Chromium has ended")
            self.pending += data
        message, _, self.pending = self.pending.partition(b"\0")
        return json.loads(message)

    def ask(self, method: str, **params) -> dict:
        """The result of a command; events that come meanwhile are written down."""
        number = next(self.numbers)
        command = {"id": number, "method": method, "params": params}
        if self.session:
            command["sessionId"] = self.session
        data = json.dumps(command).encode() + b"\0"
        while data:
            data = data[os.write(self.write_to, data) :]
        while True:
            message = self.receive()
            if message.get("id") == number:
                assert "error" not in message, (method, message)
                return message["result"]
            self.note(message)

    def note(self, event: dict) -> None:
        name, params = event.get("method"), event.get("params", {})
        if name == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.complaints.append(details.get("exception", {}).get("description", details["text"]))
        elif name == "Runtime.consoleAPICalled":
            self.complaints.append(f"{params['type']}: {params['args']}")
        elif name == "Log.entryAdded":
            self.complaints.append(params["entry"]["text"])
        elif name == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif name == "Page.loadEventFired":
            self.loaded = True

    def open(self, path: Path, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Load a page and wait until it has been drawn."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])
        self.complaints, self.requests, self.loaded = [], [], False
        self.ask("Page.navigate", url=path.resolve().as_uri())
        while not self.loaded:
            self.note(self.receive())
        self.run("new Promise((drawn) => requestAnimationFrame(() => setTimeout(drawn, 20)))")

    def run(self, script: str):
        """The value of a JavaScript expression, once it is there; as JSON, in which strings stay what they are."""
        whole = f"(async () => JSON.stringify(await ({script})) ?? null)()"
        result = self.ask("Runtime.evaluate", expression=whole, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        value = result["result"]["value"]
        return None if value is None else json.loads(value)

    def press(self, *keys: str) -> None:
        for key in keys:
            about = {"key": key, "code": key, "windowsVirtualKeyCode": KEY_CODES[key]}
            self.ask("Input.dispatchKeyEvent", type="rawKeyDown", **about)
            self.ask("Input.dispatchKeyEvent", type="keyUp", **about)

    def picture(self, path: Path, whole: bool = True) -> None:
        """A screenshot as PNG, of the whole page or of the window."""
        data = self.ask("Page.captureScreenshot", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))
