"""Run the page: choose its address and key, and open a browser."""

from __future__ import annotations

import contextlib
import html
import ipaddress
import logging
import os
import secrets
import signal
import sys
import tempfile
import threading
import webbrowser
from pathlib import Path
from typing import Any

from mimruntime.browse.app import create_app
from mimruntime.browse.guard import LOOPBACK
from mimruntime.browse.session import open_session
from mimruntime.browse.settings import BrowseSettings
from mimruntime.errors import OptionError
from mimruntime.serve.listening import Server, bind, make_config, url_of
from mimruntime.serve.logs import set_up_logs
from mimruntime.serve.settings import Served, Settings
from mimruntime.writing import write_file

_LOG = logging.getLogger("mimexport")
_MAX_BODY = 32_000_000
_GRACE_S = 2


class _Browsed(Server):
    """A server that opens a browser when it starts to listen."""

    key: str | None = None
    opens = False
    private: Path | None = None
    """A folder that only this user can read, where there is a key."""

    async def startup(self, sockets: Any = None) -> None:
        """Start, print the address of the page, and open it."""
        await super().startup(sockets)
        page = url_of(self.config, self.servers[0].sockets[0]) + ("/" if self.key is None else f"/?key={self.key}")
        _LOG.info("the page: %s", page)
        if self.opens:
            opened = page if self.private is None else redirect_to(page, self.private)
            # In a thread: the browser may block until it is closed.
            threading.Thread(target=webbrowser.open, args=(opened,), daemon=True).start()


def browse(settings: BrowseSettings, *, opens: bool = True) -> None:
    """Serve the page until SIGTERM or Ctrl-C.

    Args:
        settings: the images, artifacts and address.
        opens: whether to open a browser.

    Raises:
        MimError: an artifact cannot be opened, there are no images, vectors have another space, or the address is taken.
        KeyboardInterrupt: after Ctrl-C, once it has stopped.
        SystemExit: with status 0 after SIGTERM, once it has stopped.

    """
    set_up_logs(as_json=False)
    listeners = bind(settings.host, settings.port)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    key = secrets.token_urlsafe(16) if _needs_key(settings.host) else None
    hosts = (settings.host.lower(), *LOOPBACK) if key is None else ()
    limits = Settings(
        artifacts=tuple(Served(Path(name)) for name in settings.artifacts),
        host=settings.host,
        port=settings.port,
        max_body=_MAX_BODY,
        grace_s=_GRACE_S,
    )
    with contextlib.ExitStack() as stack:
        for listener in listeners:
            stack.enter_context(listener)
        session = stack.enter_context(open_session(settings))
        _LOG.info("%d images, %d artifacts", len(session.gallery), len(session.collections))
        server = _Browsed(make_config(limits, create_app(session, limits, hosts=hosts, key=key)))
        server.key, server.opens = key, opens and has_screen()
        if server.key and server.opens:
            server.private = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mimexport-browse-")))
        server.run(listeners)


def has_screen() -> bool:
    """Return whether a browser can open a window; without a screen, a text browser might take over the terminal."""
    return sys.platform != "linux" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def redirect_to(page: str, private: Path) -> str:
    """Return the address of a file that leads to the page: a browser's command line shows its address to every user."""
    file = private / "page.html"
    text = f'<!doctype html><meta http-equiv="refresh" content="0; url={html.escape(page)}"><title>mimexport</title>'
    write_file(file, text.encode(), mode=0o600)
    return file.as_uri()


def _needs_key(host: str) -> bool:
    """Return whether `host` is another address than a browser's own machine, by its usual names."""
    try:
        return host != "localhost" and str(ipaddress.ip_address(host)) not in {"127.0.0.1", "::1"}
    except ValueError as error:
        raise OptionError(
            f"--host {host}: expected an address of this machine, such as 127.0.0.1 or 0.0.0.0"
        ) from error
