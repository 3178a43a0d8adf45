"""What a service that is asked for vectors may answer: each wrong answer is one line, and the key stays with its host."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from mimruntime.errors import EngineError
from mimruntime.search.service import ServiceEncoder


class Answers(BaseHTTPRequestHandler):
    """Answers from `server.answers` by path, each with status, headers and body; notes the requests in `server.asked`."""

    def do_GET(self):
        self.server.asked.append((self.path, self.headers["Authorization"]))
        self.rfile.read(int(self.headers["Content-Length"] or 0))
        status, headers, body = self.server.answers[self.path]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET  # noqa: N815 - named by the base class

    def log_message(self, *_):
        pass


@pytest.fixture
def serve():
    running = []

    def start(answers):
        server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
        server.answers, server.asked = answers, []
        server.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        running.append((server, thread))
        return server

    yield start
    for server, thread in running:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_the_key_is_not_sent_on_where_the_service_redirects(serve, monkeypatch, status):
    monkeypatch.setenv("MIMEXPORT_API_KEY", "a secret")
    other = serve({"/info": (200, {}, b"{}")})
    service = serve({"/info": (status, {"Location": f"{other.url}/info"}, b"")})
    with pytest.raises(EngineError, match=f"/info answered {status}: it redirects.*name the address of the service"):
        ServiceEncoder(service.url)
    assert service.asked == [("/info", "Bearer a secret")]
    assert other.asked == []


ABOUT = {
    "name": "toy", "space": "0" * 16, "dim": 2, "engine": "none", "provider": "cpu", "precision": "fp32",
    "batch_sizes": [1], "compiled": None, "status": "more than is asked for",
}  # fmt: skip


def info(about):
    return 200, {}, json.dumps({"models": [about]}).encode()


@pytest.mark.parametrize("about", [[], "toy", {}, {**ABOUT, "dim": "2"}, {**ABOUT, "batch_sizes": None}])
def test_what_describes_itself_otherwise_is_no_service(serve, about):
    with pytest.raises(EngineError, match="does not answer as `mimexport serve` does"):
        ServiceEncoder(serve({"/info": info(about)}).url)


@pytest.mark.parametrize(
    "answer",
    [
        {}, [], {"data": []}, {"data": [{}]}, {"data": [{"embedding": None}]}, {"data": [{"embedding": "AAAA"}]},
        {"data": [{"embedding": [1.0]}]}, {"data": [{"embedding": [1.0, float("nan")]}]},
    ],
)  # fmt: skip
def test_an_answer_of_another_shape_is_an_error_of_one_line(serve, answer):
    service = serve({"/info": info(ABOUT), "/v1/embeddings/image": (200, {}, json.dumps(answer).encode())})
    with ServiceEncoder(service.url) as encoder, pytest.raises(EngineError, match="without a vector of 2 numbers"):
        list(encoder.stream([b"an image"]))


@pytest.mark.parametrize("status", [200, 500])
def test_an_answer_that_is_cut_off_is_an_error_of_one_line(serve, status):
    cut = (status, {"Content-Length": "1000"}, b'{"data": [')
    service = serve({"/info": info(ABOUT), "/v1/embeddings/image": cut})
    with ServiceEncoder(service.url) as encoder, pytest.raises(EngineError, match=service.url):
        list(encoder.stream([b"an image"]))
