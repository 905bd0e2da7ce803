"""Pages in a real headless Chromium, which fail on what the console says and on what is asked of others."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Dialog, Page

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_OWN = ("file", "data", "blob", "about")


@pytest.fixture(scope="session")
def browser() -> "Iterator[Browser]":
    """Headless Chromium, found on PATH; names are resolved to nothing but this machine."""
    reason = "playwright is not installed; pip install playwright"
    playwright = pytest.importorskip("playwright.sync_api", reason=reason)
    path = next(filter(None, map(shutil.which, _NAMES)), None)
    if path is None:
        pytest.skip(f"none of {', '.join(_NAMES)} is on PATH; install Chromium")
    args = ["--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
    with playwright.sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=path, args=args)
        yield launched
        launched.close()


@contextmanager
def opened(
    browser: "Browser",
    url: str,
    width: int = 1280,
    height: int = 900,
    scheme: Any = "light",
    **context: Any,
) -> "Iterator[Page]":
    """A page; closing it fails where the console had an error, a dialog came up, or another host was asked.

    Args:
        url: ``http`` of the app's own address, or ``file``.
        width, height: of the window, in pixels.
        scheme: light or dark.
        context: further options of playwright's ``new_context``, such as ``java_script_enabled``.
    """
    session = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, **context)
    page = session.new_page()
    told: list[str] = []
    asked: list[str] = []

    def dismiss(dialog: "Dialog") -> None:
        told.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    page.on("console", lambda message: told.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on("dialog", dismiss)
    page.on("request", lambda request: asked.append(request.url))
    page.on("websocket", lambda socket: asked.append(socket.url))
    try:
        page.goto(url)
        yield page
    finally:
        session.close()
    assert not told, told
    own = urlsplit(url).netloc
    foreign = [one for one in asked if urlsplit(one).scheme not in _OWN and urlsplit(one).netloc != own]
    assert not foreign, f"asked of others: {foreign}"


def keep_screenshot(page: "Page", name: str) -> Path:
    """Keep a picture of the whole page in ``$LWTA_SCREENSHOTS``, else ``build/screenshots``."""
    folder = Path(os.environ.get("LWTA_SCREENSHOTS") or Path(__file__).parents[1] / "build" / "screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.png"
    page.screenshot(path=path, full_page=True)
    return path


def overflow(page: "Page") -> int:
    """Pixels by which the page is wider than the window."""
    return page.evaluate("document.scrollingElement.scrollWidth - document.documentElement.clientWidth")
