"""The key of a page on another address than a browser's own machine: who has it gets in, beside whatever else."""

import stat
import sys
import time
from pathlib import Path

import browsing
import pytest
from browsing import chromium, running_page, wait_for
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from mimruntime.browse.guard import GuardMiddleware
from mimruntime.browse.server import redirect_to


def client(port=8010, key="a secret"):
    app = Starlette(routes=[Route("/{path:path}", lambda _: PlainTextResponse("the page"))])
    guarded = GuardMiddleware(app, hosts=(), key=key)
    return TestClient(guarded, base_url=f"http://h:{port}", follow_redirects=False)


@pytest.mark.parametrize("foreign", ['foo={"a":1}', "flag", "x=a b", "a/b=1", '"', "=", "é=1"])
def test_a_cookie_of_another_program_does_not_hide_the_key(foreign):
    browser = client()
    own = browser.get("/?key=a+secret").headers["Set-Cookie"].partition(";")[0]
    browser.cookies.clear()
    for cookies in (f"{foreign}; {own}", f"{own}; {foreign}"):
        assert browser.get("/", headers={"Cookie": cookies.encode()}).text == "the page"
    assert browser.get("/", headers={"Cookie": foreign.encode()}).status_code == 401


def test_pages_on_two_ports_of_a_host_keep_their_keys_apart():
    first, second = client(8010, "one"), client(8011, "two")
    cookies = "; ".join(
        browser.get(f"/?key={key}").headers["Set-Cookie"].partition(";")[0]
        for browser, key in ((first, "one"), (second, "two"))
    )
    for browser in (first, second):
        browser.cookies.clear()
        assert browser.get("/", headers={"Cookie": cookies}).text == "the page"


@pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.2 is an address of this machine on Linux alone")
@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2"])
def test_the_command_line_of_the_browser_does_not_hold_the_key(toy_artifact, photos, tmp_path, monkeypatch, host):
    (tmp_path / "browser").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/part; mv {tmp_path}/part {tmp_path}/line\n')
    (tmp_path / "browser").chmod(0o755)
    monkeypatch.setenv("BROWSER", str(tmp_path / "browser"))
    monkeypatch.setenv("DISPLAY", ":none")
    arguments = (toy_artifact, "--images", photos[0], "--cache", tmp_path / "cache", "--no-check-reference", "--open")
    with running_page(*arguments, "--host", host, log=tmp_path / "log") as page:
        while not (tmp_path / "line").exists():
            time.sleep(0.01)
        line = (tmp_path / "line").read_text().strip()
        if host == "127.0.0.1":
            assert line == page.url
            return
        file = Path(line.removeprefix("file://"))
        assert f"url={page.url}" in file.read_text()
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert not file.parent.exists()


@pytest.mark.skipif(bool(browsing.missing()), reason=browsing.missing() or "a browser is there")
def test_a_file_that_leads_to_the_page_opens_it(page_with_key, tmp_path):
    with chromium() as driver:
        driver.get(redirect_to(page_with_key.url, tmp_path))
        wait_for(driver, "document.body.classList.contains('ready')")
        assert "key" not in driver.current_url
