"""Small hub on the loopback interface: the part of its protocol that the client uses to push and pull models."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlparse


class Hub:
    """Repositories in memory; `asked` records what was asked for.

    Attributes:
        repos: Files of each repository, by name.
        address: Address of the server.
    """

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.blobs: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.private: dict[str, bool] = {}
        self.address = ""

    def commit(self, repo: str) -> str:
        """Return the commit of a repository: a hash of its files."""
        found = hashlib.sha1()
        for name, content in sorted(self.repos[repo].items()):
            found.update(name.encode() + content)
        return found.hexdigest()


@contextmanager
def running_hub() -> Iterator[Hub]:
    hub = Hub()

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=0.05), daemon=True)
    thread.start()
    hub.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def reply(self, content: Any, status: int = 200, **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            found = b""
            while size := int(self.rfile.readline(), 16):
                found += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return found
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def parts(self) -> list[str]:
        path = unquote(urlparse(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        return path.strip("/").split("/")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        match self.parts():
            case ["api", "models", owner, name, *_] if f"{owner}/{name}" in self.hub.repos:
                repo = f"{owner}/{name}"
                files = [dict(rfilename=file, size=len(data)) for file, data in self.hub.repos[repo].items()]
                self.reply(
                    dict(id=repo, sha=self.hub.commit(repo), siblings=files, private=self.hub.private.get(repo, False))
                )
            case [owner, name, "resolve", _, *path] if f"{owner}/{name}" in self.hub.repos:
                self.file(f"{owner}/{name}", "/".join(path))
            case _:
                self.reply(dict(error="Repository not found"), 404, X_Error_Code="RepoNotFound")

    def file(self, repo: str, path: str) -> None:
        data, commit = self.hub.repos[repo].get(path), self.hub.commit(repo)
        if data is None:
            self.reply(dict(error="Entry not found"), 404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
            return
        self.reply(data, X_Repo_Commit=commit, ETag=f'"{hashlib.sha256(data).hexdigest()}"')

    def do_PUT(self) -> None:
        *_, digest = self.parts()
        data = self.body()
        good = hashlib.sha256(data).hexdigest() == digest
        self.hub.blobs[digest] = data
        self.reply(b"", 200 if good else 400)

    def do_POST(self) -> None:
        match self.parts():
            case ["api", "repos", "create"]:
                given = json.loads(self.body())
                repo = f"{given['organization']}/{given['name']}"
                known = repo in self.hub.repos
                self.hub.repos.setdefault(repo, {})
                self.hub.private.setdefault(repo, given.get("visibility") == "private")
                self.reply(dict(url=f"{self.hub.address}/{repo}"), 409 if known else 200)
            case ["api", "validate-yaml"]:
                self.body()
                self.reply(dict(errors=[], warnings=[]))
            case ["api", "models", _, _, "preupload", _]:
                files = json.loads(self.body())["files"]
                modes = {True: "lfs", False: "regular"}
                told = [
                    dict(
                        path=f["path"],
                        uploadMode=modes[f["path"].endswith((".safetensors", ".onnx"))],
                        shouldIgnore=False,
                    )
                    for f in files
                ]
                self.reply(dict(files=told))
            case [_, _, "info", "lfs", "objects", "batch"]:
                objects = json.loads(self.body())["objects"]
                told = [
                    dict(**o, actions=dict(upload=dict(href=f"{self.hub.address}/blob/{o['oid']}", header={})))
                    for o in objects
                ]
                self.reply(dict(transfer="basic", objects=told))
            case ["api", "models", owner, name, "commit", _]:
                self.commit(f"{owner}/{name}")
            case _:
                self.body()
                self.reply(dict(error="not here"), 404)

    def commit(self, repo: str) -> None:
        for line in self.body().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                self.hub.repos[repo][value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                self.hub.repos[repo][value["path"]] = self.hub.blobs[value["oid"]]
        commit = self.hub.commit(repo)
        url = f"{self.hub.address}/{repo}/commit/{commit}"
        self.reply(dict(success=True, commitOid=commit, commitUrl=url, hookOutput=""))
