"""Headless Chromium, which tests drive through the DevTools protocol."""

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time

NAMES = ("chromium", "chromium-browser", "google-chrome")
LIMIT_SECONDS = 120  # in which the browser must answer
PATH = next(filter(None, map(shutil.which, NAMES)), None)
"""The browser; None if none is installed."""


class Browser:
    """A browser with one tab, without network.

    Attributes:
        messages: what was written to the console since ``open``, and the exceptions in the page.
        requests: the addresses that were requested since ``open``, that of the page included.
    """

    def __init__(self):
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        command = [
            PATH,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            "--remote-debugging-pipe",
            f"--user-data-dir={self._profile.name}",
            "about:blank",
        ]
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        # The browser reads from descriptor 3, and writes to 4.
        redirect = f'exec "$@" 3<&{to_browser} 4>&{from_browser}'
        self._process = subprocess.Popen(
            ["bash", "-c", redirect, "bash", *command],
            pass_fds=(to_browser, from_browser),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._unread, self._number, self._session = b"", 0, None
        self._events = []
        self.messages, self.requests = [], []
        (tab,) = [
            each
            for each in self._call("Target.getTargets")["targetInfos"]
            if each["type"] == "page"
        ]
        attached = self._call("Target.attachToTarget", targetId=tab["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    def close(self):
        self._session = None
        self._call("Browser.close")
        self._process.wait(LIMIT_SECONDS)
        os.close(self._write)
        os.close(self._read)
        self._profile.cleanup()

    def open(self, path, *, width=1280, height=900, is_dark=False, fragment="", wait=True):
        """Opens a file, and waits until it is loaded."""
        self.resize(width, height)
        self.set_dark(is_dark)
        self._events.clear()
        self._call("Page.navigate", url="about:blank")  # also if only the fragment changes
        self._wait_for("Page.loadEventFired")
        self.messages, self.requests = [], []
        self._call("Page.navigate", url=f"{path.as_uri()}{fragment}")
        self._wait_for("Page.loadEventFired")
        if wait:
            self.settle()

    def reload(self):
        self._events.clear()
        self._call("Page.reload")
        self._wait_for("Page.loadEventFired")
        self.settle()

    def resize(self, width, height):
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        self._call("Emulation.setTouchEmulationEnabled", enabled=width < 600)

    def set_dark(self, is_dark):
        scheme = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        self._call("Emulation.setEmulatedMedia", media="", features=[scheme])

    def evaluate(self, expression):
        """Returns the value of an expression of JavaScript; a promise is waited for."""
        answer = self._call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def settle(self):
        """Waits until the charts in view have been drawn."""
        frames = "requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done)))"
        while True:
            self.evaluate(f"new Promise(done => {frames})")
            if not self.evaluate("document.querySelectorAll('[aria-busy=true]').length"):
                return

    def count(self, selector):
        return self.evaluate(f"document.querySelectorAll({json.dumps(selector)}).length")

    def text(self, selector):
        """Returns the text of an element as readers see it; None if it is not shown."""
        found = f"document.querySelector({json.dumps(selector)})"
        return self.evaluate(f"{found}?.checkVisibility() ? {found}.innerText : null")

    def click(self, selector):
        self.evaluate(f"document.querySelector({json.dumps(selector)}).click()")
        self.settle()

    def fill(self, selector, value):
        """Enters a value into a field, as readers do."""
        field = f"document.querySelector({json.dumps(selector)})"
        entered = f"field.value = {json.dumps(value)}; field.dispatchEvent(new Event('input'))"
        self.evaluate(f"(field => {{ {entered} }})({field})")
        self.settle()

    def mouse(self, kind, x, y, **parameters):
        self._call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **parameters)
        self.settle()

    def tap(self, x, y):
        point = {"x": x, "y": y}
        for kind, points in (("touchStart", [point]), ("touchEnd", [])):
            self._call("Input.dispatchTouchEvent", type=kind, touchPoints=points)
        self.settle()

    def allow_clipboard(self):
        session, self._session = self._session, None  # permissions are those of the browser
        self._call("Browser.grantPermissions", permissions=["clipboardReadWrite"])
        self._session = session

    def press(self, key):
        for kind in ("keyDown", "keyUp"):
            self._call("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def screenshot(self, path, *, height=None, scale=1):
        """Writes a picture of the page, of the whole page without a height."""
        size = self._call("Page.getLayoutMetrics")["cssContentSize"]
        height = height or size["height"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": height, "scale": scale}
        answer = self._call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(answer["data"]))

    def without_scripts(self, is_without):
        self._call("Emulation.setScriptExecutionDisabled", value=is_without)

    def _call(self, method, **parameters):
        self._number += 1
        number = self._number
        message = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self._note(answer)

    def _wait_for(self, event):
        while event not in self._events:
            self._note(self._receive())
        self._events.clear()

    def _note(self, message):
        """Notes an event."""
        method, parameters = message.get("method"), message.get("params", {})
        self._events.append(method)
        if method == "Runtime.consoleAPICalled":
            self.messages.append([each.get("value") for each in parameters["args"]])
        elif method == "Runtime.exceptionThrown":
            details = parameters["exceptionDetails"]
            self.messages.append(details.get("exception", {}).get("description", details["text"]))
        elif method == "Log.entryAdded":
            self.messages.append(parameters["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])

    def _receive(self):
        deadline = time.monotonic() + LIMIT_SECONDS
        while b"\0" not in self._unread:
            left = max(0, deadline - time.monotonic())
            assert select.select([self._read], [], [], left)[0], "the browser does not answer"
            data = os.read(self._read, 2**20)
            assert data, "the browser has ended"
            self._unread += data
        message, _, self._unread = self._unread.partition(b"\0")
        return json.loads(message)
