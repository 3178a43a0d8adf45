"""Whatever goes wrong between here and a server is one line or an error row."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator

import pytest

from mimruntime.collection.access import Access
from mimruntime.collection.inputs import Columns, Entry, find_entries
from mimruntime.collection.reader import read_images
from mimruntime.errors import ImageError

pytest.importorskip("aiohttp", reason="aiohttp is not installed: make test-scale")
# fsspec leaves the answer with a bad status to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
FAILURES = {
    "status": "503, message='Service Unavailable'",
    "cut": "Response payload is not completed",
    "dropped": "Server disconnected",
}


class Handler(http.server.BaseHTTPRequestHandler):
    """Has a file of zeros, and fails where it is read: as the first part of the path says."""

    def do_GET(self) -> None:
        self.close_connection = True
        is_read = "Range" in self.headers or self.path.endswith(".txt")
        if is_read and self.path.startswith("/dropped"):
            return
        self.send_response(503 if is_read and self.path.startswith("/status") else 206 if is_read else 200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(bytes(1 if is_read else 1000))

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{made.server_address[1]}"
        made.shutdown()


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.parquet", "list.txt"])
def test_an_input_that_a_server_does_not_give_is_one_line(server: str, failure: str, name: str) -> None:
    url = f"{server}/{failure}/{name}"
    named = f"@{url}" if name == "list.txt" else url
    with pytest.raises(ImageError, match=f"^{url}: .*cannot be read.*{FAILURES[failure]}"):
        list(find_entries([named], Columns(), Access.of([named])))


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.parquet"])
def test_rows_that_a_server_does_not_give_any_more_have_an_error(server: str, failure: str, name: str) -> None:
    url = f"{server}/{failure}/{name}"
    rows = list(read_images([Entry(url, 0, 2)], Columns(), access=Access.of([url])))
    assert [name for name, _ in rows] == [f"{url}#0", f"{url}#1"]
    assert all(isinstance(error, ImageError) and FAILURES[failure] in str(error) for _, error in rows)
