"""A headless Chromium, and `mimexport browse` as a user starts it: for the tests of the page, its pictures and its figures."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

START = "from mimexport.cli import main; main()"
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_DRIVERS = ("chromedriver",)


@dataclass(frozen=True)
class Page:
    """A running `mimexport browse`."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def memory(self) -> int:
        """Return the bytes it has had resident at most."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        return int(status.split("VmHWM:")[1].split()[0]) * 1024


def missing() -> str:
    """Return what a browser needs and this machine lacks; "" where all is there."""
    for names in (_BROWSERS, _DRIVERS):
        if not any(map(shutil.which, names)):
            return f"none of {', '.join(names)} is installed; on Debian: apt install chromium chromium-driver"
    return ""


@contextlib.contextmanager
def running_page(*arguments: object, log: Path) -> Iterator[Page]:
    """Run `mimexport browse` with `arguments`, on a free port unless they name one, until the block ends."""
    command = [sys.executable, "-c", START, "browse", "--port", "0", "--no-open", *map(str, arguments)]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
    try:
        yield Page(_address(process, log), process, log)
    finally:
        process.terminate()
        process.wait(30)


@contextlib.contextmanager
def chromium(width: int = 1280, height: int = 800) -> Iterator[Any]:
    """Yield Selenium's driver of a headless Chromium, its window so many px large, with a profile of its own."""
    from selenium import webdriver  # noqa: PLC0415 - only where a browser is driven

    options = webdriver.ChromeOptions()
    options.binary_location = _found(_BROWSERS)
    with tempfile.TemporaryDirectory(prefix="mimexport-browser-", ignore_cleanup_errors=True) as profile:
        for flag in (
            "--headless=new",
            "--no-sandbox",  # a container's root has none; the page is our own
            "--disable-dev-shm-usage",
            "--disable-gpu",
            "--hide-scrollbars",
            f"--user-data-dir={profile}",
            f"--window-size={width},{height}",
        ):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(_found(_DRIVERS)))
        try:
            resize(driver, width, height)
            yield driver
        finally:
            driver.quit()


def resize(driver: Any, width: int, height: int, *, scale: float = 1, phone: bool = False) -> None:
    """Set the size of the view, px, and how many pixels of the screen one of them is."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": phone}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def set_scheme(driver: Any, scheme: str) -> None:
    """Have the user prefer "light" or "dark"."""
    wanted = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": wanted})


def wait_for(driver: Any, script: str, seconds: float = 60) -> Any:
    """Return what `script`, an expression, gives once that is true.

    Raises:
        TimeoutError: it was not in so many seconds.

    """
    deadline = time.monotonic() + seconds
    while not (found := driver.execute_script(f"return {script}")):
        if time.monotonic() > deadline:
            said = [entry["message"] for entry in driver.get_log("browser")]
            raise TimeoutError(f"not true in {seconds} s: {script}; the browser said: {said}")
        time.sleep(0.05)
    return found


def _found(names: tuple[str, ...]) -> str:
    return next(path for name in names if (path := shutil.which(name)))


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + 60
    while not (said := re.search(r"the page: (\S+)", log.read_text(encoding="utf-8"))):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the page did not start: {log.read_text(encoding='utf-8')}")
        time.sleep(0.02)
    return said[1]
