"""The key of a page on another address than a browser's own machine: who has it gets in, beside whatever else."""

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from mimruntime.browse.guard import GuardMiddleware


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
