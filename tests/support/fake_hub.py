"""A Hugging Face hub on the loopback that speaks what huggingface_hub uses to publish a model, and records it."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PART_BYTES = 48 * 1024
LARGE = 10 * 1024


@dataclass
class Call:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class FakeHub:
    """`token` may write; `fail` maps part of a path to a status, or to 0: the connection is dropped."""

    token: str = "hf_right"
    fail: dict[str, int] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    parts: dict[str, dict[int, bytes]] = field(default_factory=dict)
    url: str = ""
    says: str = "as the test asked"

    def answer(self, call: Call) -> tuple[int, object, dict[str, str]]:
        for part, status in self.fail.items():
            if part in call.path:
                return status, {"error": self.says}, {"X-Error-Message": self.says}
        storage = call.path.startswith("/storage/")  # the addresses there are their own permission
        if not storage and call.headers.get("authorization") != f"Bearer {self.token}":
            return 401, {"error": "Invalid username or password."}, {}
        steps = {
            "/api/repos/create": self._create, "/preupload/": self._preupload, "objects/batch": self._batch,
            "/commit/": self._commit, "/storage/": self._store, "/api/validate-yaml": lambda _: {"errors": []},
        }  # fmt: skip
        found = next((handle for part, handle in steps.items() if part in call.path), None)
        if found is None:
            return 404, {"error": "no such page"}, {}
        result = found(call)
        return result if isinstance(result, tuple) else (200, result, {})

    def _create(self, call):
        asked = json.loads(call.body)
        repo = f"{asked['organization']}/{asked['name']}"
        url = {"url": f"{self.url}/{repo}"}
        if repo in self.repos:
            return 409, url | {"error": "You already created this model repo"}, {}
        self.repos[repo], self.private[repo] = {}, asked.get("visibility") == "private"
        return url

    def _preupload(self, call):
        files = json.loads(call.body)["files"]
        mode = {True: "lfs", False: "regular"}
        return {
            "files": [
                {"path": f["path"], "uploadMode": mode[f["size"] > LARGE], "shouldIgnore": False, "oid": None}
                for f in files
            ]
        }

    def _batch(self, call):
        objects = []
        for item in json.loads(call.body)["objects"]:
            oid, size = item["oid"], item["size"]
            entry = {"oid": oid, "size": size}
            if oid not in self.blobs:
                upload = {"href": f"{self.url}/storage/{oid}"}
                if size > PART_BYTES:
                    count = -(-size // PART_BYTES)
                    links = {str(n): f"{self.url}/storage/{oid}/{n}" for n in range(1, count + 1)}
                    upload["header"] = {"chunk_size": str(PART_BYTES), **links}
                entry["actions"] = {"upload": upload}
            objects.append(entry)
        return {"objects": objects, "transfer": "multipart"}

    def _store(self, call):
        oid, _, part = call.path.removeprefix("/storage/").partition("/")
        if part:
            self.parts.setdefault(oid, {})[int(part)] = call.body
            return 200, {}, {"ETag": f'"{part}"'}
        if call.method == "PUT":
            data = call.body
        else:
            data = b"".join(self.parts[oid][p["partNumber"]] for p in json.loads(call.body)["parts"])
        if hashlib.sha256(data).hexdigest() != oid:
            return 400, {"error": "the content is not what was announced"}, {}
        self.blobs[oid] = data
        return {}

    def _commit(self, call):
        repo = call.path.removeprefix("/api/models/").partition("/commit/")[0]
        for line in call.body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                self.repos[repo][value["path"]] = base64.b64decode(value["content"])
            if entry["key"] == "lfsFile":
                self.repos[repo][value["path"]] = self.blobs[value["oid"]]
        oid = "1" * 40
        return {"commitUrl": f"{self.url}/{repo}/commit/{oid}", "commitOid": oid, "success": True}


@contextmanager
def serve(hub: FakeHub) -> Iterator[FakeHub]:
    """The hub behind an address of its own (`hub.url`) until the block is left."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self._body()
            headers = {name.lower(): value for name, value in self.headers.items()}
            call = Call(self.command, self.path, headers, body)
            hub.calls.append(call)
            status, content, extra = hub.answer(call)
            if status == 0:
                self.close_connection = True
                self.connection.close()
                return
            data = json.dumps(content).encode()
            self.send_response(status)
            for name, value in {
                "Content-Type": "application/json",
                "Content-Length": len(data),
                **extra,
            }.items():
                self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = handle_any

        def _body(self) -> bytes:
            if "chunked" in self.headers.get("Transfer-Encoding", ""):
                data = b""
                while size := int(self.rfile.readline(), 16):
                    data += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return data
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def log_message(self, *args) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
