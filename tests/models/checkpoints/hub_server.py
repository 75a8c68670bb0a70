"""A Hugging Face hub of one's own on the loopback, as far as its client asks for things, with faults on request."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

_LFS = (".safetensors", ".bin")
_FILE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_INFO = re.compile(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+)|/(refs))?")
_TREE = re.compile(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)")


@dataclass
class Hub:
    """What the server has, and a record of what it was asked.

    `faults` maps a piece of a path to what happens instead, once for every entry of its list: a status, "cut" (the
    connection breaks in the middle of the body), "flip" (one byte differs) or "wait" (five seconds pass first).
    """

    repos: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    faults: dict[str, list[int | str]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    sent_bytes: int = 0
    url: str = ""

    def add(self, name: str, revision: str, folder: Path, *, extra: dict[str, bytes] | None = None) -> None:
        files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        self.repos.setdefault(name, {})[revision] = files | (extra or {})

    def commit(self, name: str, revision: str) -> str:
        return hashlib.sha1(f"{name} {revision}".encode()).hexdigest()

    def find(self, name: str, revision: str) -> str | None:
        """The branch that a branch's name or a commit means."""
        return next((b for b in self.repos[name] if revision in (b, self.commit(name, b))), None)

    def gets(self, piece: str) -> int:
        return sum(line.startswith("GET") and piece in line for line in self.asked)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: Any) -> None: ...

    def do_HEAD(self) -> None:
        self.respond(body=False)

    def do_GET(self) -> None:
        self.respond(body=True)

    def respond(self, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path} {self.headers.get('Range', '')}".strip())
        fault = next((f for piece, f in self.hub.faults.items() if piece in path and f and (body or f[0] == 404)), None)
        happens = fault.pop(0) if fault else None
        if isinstance(happens, int):
            self.send(happens, b"{}", {}, body)
            return
        info, file, tree = _INFO.fullmatch(path), _FILE.fullmatch(path), _TREE.fullmatch(path)
        match = info or file or tree
        name = match[1] if match else ""
        if name in self.hub.gated:
            self.send(403, b"{}", {"X-Error-Code": "GatedRepo"}, body)
        elif name not in self.hub.repos:
            self.send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body)
        elif info and info[3]:
            self.send_refs(name)
        else:
            revision = self.hub.find(name, match[2] or "main")
            if revision is None:
                self.send(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, body)
            elif info:
                self.send_info(name, revision)
            elif tree:
                self.send_tree(name, revision)
            else:
                self.send_file(name, revision, file[3], happens, body)

    def send_refs(self, name: str) -> None:
        branches = [
            {"name": branch, "ref": f"refs/heads/{branch}", "targetCommit": self.hub.commit(name, branch)}
            for branch in self.hub.repos[name]
        ]
        self.send(200, json.dumps({"branches": branches, "tags": [], "converts": []}).encode(), {}, True)

    def send_info(self, name: str, revision: str) -> None:
        siblings = []
        for file, content in self.hub.repos[name][revision].items():
            digest = hashlib.sha256(content).hexdigest()
            lfs = {"lfs": {"sha256": digest, "size": len(content), "pointerSize": 134}} if file.endswith(_LFS) else {}
            siblings.append({"rfilename": file, "size": len(content), "blobId": digest[:40], **lfs})
        answer = {"id": name, "modelId": name, "sha": self.hub.commit(name, revision), "siblings": siblings}
        self.send(200, json.dumps({**answer, "private": False, "tags": [], "downloads": 0}).encode(), {}, True)

    def send_tree(self, name: str, revision: str) -> None:
        entries = []
        for file, content in self.hub.repos[name][revision].items():
            digest = hashlib.sha256(content).hexdigest()
            lfs = {"lfs": {"oid": digest, "size": len(content), "pointerSize": 134}} if file.endswith(_LFS) else {}
            entries.append({"type": "file", "path": file, "size": len(content), "oid": digest[:40], **lfs})
        self.send(200, json.dumps(entries).encode(), {}, True)

    def send_file(self, name: str, revision: str, file: str, happens: str | None, body: bool) -> None:
        content = self.hub.repos[name][revision].get(file)
        commit = {"X-Repo-Commit": self.hub.commit(name, revision)}
        if content is None:
            self.send(404, b"{}", {"X-Error-Code": "EntryNotFound", **commit}, body)
            return
        headers = {**commit, "ETag": f'"{hashlib.sha256(content).hexdigest()}"', "Accept-Ranges": "bytes"}
        if happens == "wait":
            time.sleep(5)
        if happens == "flip":
            content = content[:-3] + bytes([content[-3] ^ 1]) + content[-2:]
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(wanted[1]) if wanted else 0
        if wanted:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        cut = (len(content) - start) // 2 if happens == "cut" else None
        self.send(206 if wanted else 200, content[start:], headers, body, cut)

    def send(self, status: int, content: bytes, headers: dict[str, str], body: bool, cut: int | None = None) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(content[:cut])
            self.hub.sent_bytes += len(content[:cut])
        if cut is not None:
            self.wfile.flush()
            self.close_connection = True


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    handler = type("HubHandler", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
