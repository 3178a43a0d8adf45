"""nginx by the file of `deploy/` before a service, on loopback, with a certificate of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from service import Service, free_port

DEPLOY = Path(__file__).parents[2] / "deploy"
MAIN = """daemon off; pid {folder}/pid; error_log stderr; worker_processes 1; {user}
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    include {folder}/mimexport.conf;
}}
"""


@contextlib.contextmanager
def nginx(service: Service, folder: Path) -> Iterator[int]:
    """Run nginx by the file of `deploy/`, with other ports and the certificate `folder`/cert.pem; yield its port."""
    folder.mkdir()
    port = free_port()
    make_certificate(folder / "cert.pem", folder / "key.pem")
    text = (DEPLOY / "nginx.conf").read_text()
    for old, new in {
        "127.0.0.1:8000": f"127.0.0.1:{service.port}",
        "127.0.0.1:8001": service.grpc,
        "listen 443": f"listen 127.0.0.1:{port}",
        "/etc/ssl/embed.pem": f"{folder}/cert.pem",
        "/etc/ssl/embed.key": f"{folder}/key.pem",
    }.items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    (folder / "mimexport.conf").write_text(text)
    (folder / "nginx.conf").write_text(MAIN.format(folder=folder, user="user root;" if os.geteuid() == 0 else ""))
    command = ["nginx", "-p", folder, "-c", folder / "nginx.conf"]
    subprocess.run([*command, "-t"], check=True, capture_output=True)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stderr=log)
    try:
        deadline = time.monotonic() + 20
        while not listens(port):
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield port
    finally:
        process.send_signal(signal.SIGQUIT)
        process.wait(20)


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def make_certificate(cert: Path, key: Path) -> None:
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    about = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", cert]
    subprocess.run([*command, *about], check=True, capture_output=True)
