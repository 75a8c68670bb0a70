"""As much of a W&B server as its client needs to begin a run online, with faults: absent, silent, or dying after that."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_BUCKET = {
    **{"id": "b", "name": "r", "displayName": "r", "config": "{}", "historyLineCount": 0, "eventsLineCount": 0},
    "project": {"id": "p", "name": "headdyn", "entity": {"id": "e", "name": "someone"}},
}
_ANSWER = {
    "viewer": {"id": "v", "username": "someone", "entity": "someone", "flags": "{}", "teams": {"edges": []}},
    "serverInfo": {"features": []},
    "upsertBucket": {"bucket": _BUCKET, "inserted": True},
    "model": {"bucket": None},
}


@contextmanager
def wandb_server(fault: str) -> Iterator[str]:
    """Its address. `absent`: nothing listens there; `silent`: it takes connections and never answers; `dying`: it
    answers until a run has begun, and then breaks every connection; `dead`: that of all but logins from the start."""
    begun = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

        def do_GET(self) -> None:
            self.do_POST()

        def do_POST(self) -> None:
            asked = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if fault == "silent":
                time.sleep(600)
            if begun.is_set() or (fault == "dead" and b"viewer" not in asked):
                self.close_connection = True
                return
            if b"UpsertBucket" in asked:
                begun.set()
            body = json.dumps({"data": _ANSWER}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    if fault == "absent":
        yield "http://127.0.0.1:9"
        return
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
