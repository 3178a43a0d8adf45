"""What a stranger, a hostile file or another site gets of the page: nothing."""

import http.client
import io
import json
import socket
import sys
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from mimruntime.browse.guard import GuardMiddleware
from mimruntime.browse.server import has_screen
from mimruntime.browse.session import short_names
from mimruntime.cli import COMMANDS
from mimruntime.cli.frame import make_program


def ask(page, path, method="GET", body=None, **headers):
    """Status, headers and body of one request whose path is sent as it stands."""
    address = urlsplit(page.url)
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=60)
    try:
        connection.putrequest(method, path, skip_host="Host" in headers)
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def state(page):
    return json.loads(ask(page, "/api/state")[2])


@pytest.mark.parametrize(
    "path",
    [
        "/page/../app.py", "/page/..%2fapp.py", "/page/%2e%2e/%2e%2e/guard.py", "/thumbnails/../../etc/passwd",
        "/thumbnails/%2fetc%2fpasswd", "/pictures/0/../../../etc/passwd", "/etc/passwd", "/thumbnails/-1", "/thumbnails/1e3",
        "/thumbnails/99999999999999999999", "/pictures/97000", "/queries/..%2f..%2fetc", "/queries/0123456789abcdef",
        "/api/find?name=../../etc/passwd", "/api/find?name=/etc/passwd", "/api/heatmaps/9/0", "/docs", "/openapi.json",
    ],
)  # fmt: skip
def test_no_path_reaches_a_file(page, path):
    status, _, body = ask(page, path)
    assert status in {400, 404, 422}
    assert b"root:" not in body
    assert b"import" not in body


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8010", "127.0.0.1.evil.example", "", "localhost.evil"])
def test_another_name_of_this_address_is_refused(page, host):
    status, _, body = ask(page, "/api/state", Host=host)
    assert status == 421
    assert b"images" not in body
    assert ask(page, "/api/state", Host="localhost:1")[0] == 200


def test_pictures_of_another_list_of_images_are_not_given_under_its_numbers(page):
    """Else a browser would keep them for ever under the address of the list that it knew."""
    version = state(page)["version"]
    for kind in ("thumbnails", "pictures"):
        assert ask(page, f"/{kind}/0?v={version}")[0] == 200
        status, headers, body = ask(page, f"/{kind}/0?v=another")
        assert status == 409
        assert b"load it again" in body
        assert "immutable" not in headers.get("Cache-Control", "")


def test_every_answer_forbids_what_the_page_does_not_need(page):
    kinds = {"/": "text/html", "/page/app.js": "text/javascript", "/page/style.css": "text/css"}
    kinds |= {"/thumbnails/0": "image/jpeg", "/pictures/0": "image/jpeg", "/api/state": "application/json"}
    for path, kind in kinds.items():
        status, headers, _ = ask(page, path)
        assert status == 200
        assert headers["Content-Type"].startswith(kind)
        assert headers["X-Content-Type-Options"] == "nosniff"
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self';")
        assert "unsafe" not in policy
    assert "Content-Security-Policy" in ask(page, "/none")[1]


def test_pictures_are_upright_and_hold_pixels_alone(page, folder):
    number = json.loads(ask(page, "/api/find?name=chelsea/turned.jpg")[2])["number"]
    raw = (folder / "chelsea" / "turned.jpg").read_bytes()
    assert b"somebody" in raw
    for path, size in [(f"/thumbnails/{number}", (171, 256)), (f"/pictures/{number}", (200, 300))]:
        jpeg = ask(page, path)[2]
        assert b"somebody" not in jpeg
        assert b"Exif" not in jpeg
        with Image.open(io.BytesIO(jpeg)) as image:
            assert image.size == size
            assert not image.getexif()


def test_a_drawing_with_a_script_and_a_text_are_no_images(page):
    for name in ("chelsea/drawing.png", "chelsea/text.jpg"):
        number = json.loads(ask(page, f"/api/find?name={name}")[2])["number"]
        for path in (f"/thumbnails/{number}", f"/pictures/{number}", f"/api/heatmaps/1/{number}"):
            status, headers, body = ask(page, path)
            assert status == 415
            assert headers["Content-Type"] == "application/json"
            assert json.loads(body)["error"]["message"].startswith(f"{name}: is not an image"), (
                "by its name, not its place"
            )
    status, _, body = ask(page, "/api/queries", "POST", b"<svg xmlns='http://www.w3.org/2000/svg'/>")
    assert status == 415
    assert b"not an image of a known format" in body


def test_a_file_of_a_gigabyte_is_refused_before_it_is_sent(page):
    address = urlsplit(page.url)
    with socket.create_connection((address.hostname, address.port), 30) as connection:
        head = f"POST /api/queries HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Length: 1000000000\r\n\r\n"
        connection.sendall(head.encode() + b"x" * 1000)
        assert b" 413 " in connection.recv(100)
    chunked = b"".join(b"F4240\r\n" + b"x" * 1_000_000 + b"\r\n" for _ in range(33))
    with socket.create_connection((address.hostname, address.port), 30) as connection:
        head = f"POST /api/queries HTTP/1.1\r\nHost: {address.netloc}\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head.encode() + chunked)
        assert b" 413 " in connection.recv(100)


@pytest.mark.parametrize("headers", [{"Sec_Fetch_Site": "cross-site"}, {"Origin": "https://evil.example"}])
def test_another_site_cannot_have_an_image_embedded(page, headers):
    assert ask(page, "/api/queries", "POST", b"x", **headers)[0] == 403


def test_names_come_as_they_are_and_only_as_json(page, hostile_names):
    names = json.loads(ask(page, "/api/images?start=0&count=200")[2])["names"]
    assert {f"chelsea/{name}" for name in hostile_names} <= set(names)
    assert ask(page, "/api/images")[1]["Content-Type"] == "application/json"


def test_a_query_has_the_neighbours_that_numpy_finds(page, folder, toy_artifact):
    from mimruntime import Embedder

    while not state(page)["full"]:
        pass
    raw = (folder / "coffee" / "05.png").read_bytes()
    answer = json.loads(ask(page, "/api/queries?count=5", "POST", raw)[2])
    names = [
        name for name in json.loads(ask(page, "/api/images?count=200")[2])["names"] if not name.startswith("chelsea/")
    ]
    with Embedder.open(toy_artifact) as embedder:
        cosines = embedder.embed([folder / name for name in names]) @ embedder.embed([raw])[0]
    expected = {names[row]: cosines[row] for row in np.argsort(-cosines)[:2]}
    found = {each["name"]: each["cosine"] for each in answer["columns"][1]["neighbours"]}
    assert found["coffee/05.png"] == 1
    assert None not in [column["predicted"] for column in answer["columns"]]
    for name, cosine in expected.items():
        assert found.get(name, cosine) == pytest.approx(cosine, abs=1e-4)
    assert json.loads(ask(page, f"/api/queries/{answer['key']}?count=5")[2]) == answer


def test_the_heatmap_is_the_selection_of_the_graph(page, folder, toy_artifact):
    from mimruntime import Embedder, heatmaps

    number = json.loads(ask(page, "/api/find?name=coffee/05.png")[2])["number"]
    answer = json.loads(ask(page, f"/api/heatmaps/1/{number}")[2])
    with Embedder.open(toy_artifact) as embedder:
        expected = heatmaps.overlay(embedder.select([folder / "coffee" / "05.png"])[0])
    assert np.abs(np.array(answer["rgba"]) - expected.ravel().astype(int)).max() <= 1
    assert (answer["rows"], answer["columns"]) == (8, 8)
    assert ask(page, f"/api/heatmaps/0/{number}")[2] == b"null"


def run(*arguments):
    return CliRunner().invoke(make_program(COMMANDS), ["browse", *map(str, arguments), "--no-open", "--port", "0"])


def test_vectors_of_another_space_are_refused(toy_artifact, toy_whitened, folder, tmp_path):
    program = make_program(COMMANDS)
    out = tmp_path / "vectors.npz"
    done = CliRunner().invoke(program, ["embed", str(toy_whitened), str(folder / "coffee"), "--out", str(out)])
    assert done.exit_code == 0
    done = run(toy_artifact, "--images", folder, "--vectors", out, "--cache", tmp_path)
    assert done.exit_code == 1
    assert "holds vectors of space b1eac4edb1eac4ed" in str(done.exception)


def test_a_folder_without_images_is_refused(toy_artifact, tmp_path):
    done = run(toy_artifact, "--images", tmp_path, "--cache", tmp_path / "cache")
    assert done.exit_code == 1
    assert "no images in" in str(done.exception)


def test_a_host_that_is_no_address_is_refused(toy_artifact, folder, tmp_path):
    done = run(toy_artifact, "--images", folder, "--host", "example.org.", "--cache", tmp_path)
    assert done.exit_code == 1


class TestKey:
    """With `--host` elsewhere than here."""

    @pytest.fixture
    def client(self):
        app = Starlette(routes=[Route("/{path:path}", lambda _: PlainTextResponse("the page"))])
        return TestClient(GuardMiddleware(app, hosts=(), key="a secret"), follow_redirects=False)

    def test_the_address_with_the_key_sets_a_cookie_and_hides_the_key(self, client):
        answer = client.get("/?key=a+secret")
        assert (answer.status_code, answer.headers["Location"]) == (303, "/")
        assert {"HttpOnly", "SameSite=lax"} <= set(answer.headers["Set-Cookie"].split("; "))
        assert client.get("/").text == "the page"
        assert client.get("/thumbnails/0").text == "the page"

    def test_a_server_on_another_address_lets_nobody_in_without_it(self, page_with_key):
        key = urlsplit(page_with_key.url).query.removeprefix("key=")
        port = urlsplit(page_with_key.url).port
        assert len(key) >= 20
        for path in ("/", "/?key=wrong", "/page/app.js", "/thumbnails/0", f"/api/state?key={key}", "/api/images"):
            for headers in (
                {},
                {"Cookie": f"mimexport-key-{port}=wrong"},
                {"Host": "127.0.0.1"},
                {"Host": "evil.example"},
            ):
                status, _, body = ask(page_with_key, path, **headers)
                assert status == 401, (path, headers)
                assert b"coffee" not in body
                assert key.encode() not in body
        status, headers, _ = ask(page_with_key, f"/?key={key}")
        assert (status, headers["Location"]) == (303, "/")
        cookie = headers["Set-Cookie"].partition(";")[0]
        assert ask(page_with_key, "/api/images", Cookie=cookie)[0] == 200
        own = {"Cookie": cookie, "Host": "h:1", "Origin": "http://h:1"}
        assert ask(page_with_key, "/api/queries", "POST", b"no image", **own)[0] == 415
        assert (
            ask(page_with_key, "/api/queries", "POST", b"no image", **own | {"Origin": "http://evil.example"})[0] == 403
        )

    @pytest.mark.parametrize("path", ["/", "/?key=", "/?key=wrong", "/thumbnails/0?key=a+secret", "/api/state"])
    def test_without_it_nothing_is_shown(self, client, path):
        assert client.get(path).status_code == 401
        assert client.get(path, headers={"Cookie": "mimexport-key-80=wrong"}).status_code == 401
        assert client.get(path, headers={"Cookie": '"'}).status_code == 401


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is always a screen")
def test_a_browser_is_opened_only_where_there_is_a_screen(monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert not has_screen()
    monkeypatch.setenv("DISPLAY", ":0")
    assert has_screen()


def test_artifacts_of_one_name_are_told_apart():
    assert short_names(["a/cls/", "a/topk"]) == ["cls", "topk"]
    assert short_names(["a/topk", "b/topk", "http://h:1"]) == ["topk 1", "topk 2", "h:1"]


def test_the_page_loads_nothing_from_elsewhere():
    import mimruntime.browse

    for file in (Path(mimruntime.browse.__file__).parent / "page").iterdir():
        text = file.read_text().replace("http://www.w3.org/2000/svg", "")
        assert "http" not in text, file.name
        assert "innerHTML" not in text, file.name
