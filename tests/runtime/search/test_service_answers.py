"""What a service that is asked for vectors may answer: each wrong answer is one line, and the key stays with its host."""

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
