"""A hub on this machine: one repository with the tiny model, sent slowly, and ways in which it goes wrong."""

import hashlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from .workshop import model_files, sha256

REPO = "owner/tiny"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
# Bytes that are sent at a time, and the pause behind them.
CHUNK, PAUSE = 16_384, 0.01


class Hub:
    """Answers until it is closed. `faults` are taken from its front, one for each transfer of a file's content."""

    def __init__(self):
        self.faults: list[str] = []
        handler = type("Handler", (Answers,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


def etag(name: str, content: bytes) -> str:
    """As the hub has it: sha256 of large files, git's hash of small ones."""
    if name.endswith(".safetensors"):
        return sha256(content)
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Answers(BaseHTTPRequestHandler):
    hub: Hub
    files = model_files()
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer(with_body=False)

    def do_GET(self):
        self.answer(with_body=True)

    def answer(self, with_body: bool):
        self.close_connection = True
        try:
            if self.path.startswith(f"/api/models/{REPO}/revision/"):
                siblings = [{"rfilename": name} for name in self.files]
                self.send(json.dumps({"siblings": siblings, "sha": COMMIT}).encode(), {})
            elif (name := self.path.rsplit("/", 1)[-1]) in self.files and self.path.startswith(f"/{REPO}/resolve/"):
                self.send_file(name, with_body)
            else:
                self.send(b"", {}, status=404)
        except OSError:
            pass  # A client that goes away is part of the play.

    def send_file(self, name: str, with_body: bool):
        content = self.files[name]
        headers = {"ETag": f'"{etag(name, content)}"', "X-Repo-Commit": COMMIT}
        if not with_body:
            self.send(content, headers, with_body=False)
            return
        fault = self.hub.faults.pop(0) if self.hub.faults else None
        if fault == "refuse":
            self.send(b"", {}, status=503)
            return
        first = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        if first:
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
        self.send(content[first:], headers, status=206 if first else 200, fault=fault)

    def send(self, body: bytes, headers: dict[str, str], status: int = 200, with_body: bool = True, fault: str | None = None):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        if not with_body:
            return
        if fault:
            body = body[: len(body) // 2]
        for start in range(0, len(body), CHUNK):
            self.wfile.write(body[start : start + CHUNK])
            self.wfile.flush()
            time.sleep(PAUSE)
        if fault == "reset":
            # Closed with bytes unread in both directions, as when a router forgets the connection.
            linger = (1).to_bytes(4, "little") + (0).to_bytes(4, "little")
            self.connection.setsockopt(1, 13, linger)
            self.connection.close()
        elif fault == "silence":
            time.sleep(600)
