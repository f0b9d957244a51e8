"""A headless Chromium by its WebDriver, with the standard library alone."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import urllib.request
from contextlib import contextmanager
from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")


class Browser:
    """One tab.

    Attributes:
        address: of its session at the driver.
    """

    def __init__(self, address: str) -> None:
        self.address = address

    def ask(self, path: str, **values):
        """What the driver answers."""
        return _ask(f"{self.address}/{path}", values)

    def open(self, page: Path) -> None:
        """Load a file."""
        self.ask("url", url=page.resolve().as_uri())

    def run(self, script: str):
        """The value of a script that ends in `return`."""
        return self.ask("execute/sync", script=script, args=[])

    def cdp(self, command: str, **values):
        """A command of the DevTools protocol."""
        return self.ask("goog/cdp/execute", cmd=command, params=values)

    def click(self, selector: str) -> None:
        """Click as a mouse does: it fails where something covers the element."""
        found = self.ask("element", using="css selector", value=selector)
        self.ask(f"element/{next(iter(found.values()))}/click")

    def keys(self, text: str) -> None:
        """Type, at what has the focus."""
        active = _ask(f"{self.address}/element/active", None)
        self.ask(f"element/{next(iter(active.values()))}/value", text=text)

    def console(self) -> list:
        """What was written to the console since it was asked for."""
        return self.ask("se/log", type="browser")

    def shot(self, path: Path) -> None:
        """A picture of the whole page."""
        taken = self.cdp("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(taken["data"]))


@contextmanager
def browser(width: int = 1300, height: int = 1000):
    """A browser for as long as this is open."""
    driver = subprocess.Popen([DRIVER, "--port=0"], stdout=subprocess.PIPE, text=True)
    try:
        port = next(
            m.group(1) for line in driver.stdout if (m := re.search(r"started successfully on port (\d+)", line))
        )
        flags = ["--headless=new", "--disable-gpu", f"--window-size={width},{height}"]
        flags += ["--no-sandbox"] if os.getuid() == 0 else []
        wanted = {
            "goog:chromeOptions": {"binary": CHROMIUM, "args": flags},
            "goog:loggingPrefs": {"browser": "ALL"},
        }
        base = f"http://127.0.0.1:{port}/session"
        session = _ask(base, {"capabilities": {"alwaysMatch": wanted}})["sessionId"]
        try:
            yield Browser(f"{base}/{session}")
        finally:
            urllib.request.urlopen(urllib.request.Request(f"{base}/{session}", method="DELETE"), timeout=30)
    finally:
        driver.terminate()
        driver.wait()


def _ask(address: str, values):
    data = None if values is None else json.dumps(values).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())["value"]
