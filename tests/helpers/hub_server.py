"""A local model hub with the part of the Hub's HTTP interface that `push_to_hub` and `from_pretrained` use."""

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class Hub:
    """Repositories as lists of commits; a commit maps the paths of all files to their contents."""

    def __init__(self):
        self.repositories: dict[str, list[tuple[str, dict[str, bytes]]]] = {}
        self.served: list[tuple[str, str]] = []  # (commit, file) of every download

    def files(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """`(commit, files)` at a commit or at `main`."""
        commits = self.repositories.get(repo, [])
        found = commits[-1:] if revision == "main" else [commit for commit in commits if commit[0] == revision]
        return found[0] if found else None

    def commit(self, repo: str, lines: list[dict]) -> str:
        commits = self.repositories[repo]
        files = dict(commits[-1][1])
        for line in lines:
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        digest = hashlib.sha1(repr(sorted((k, hashlib.sha1(v).hexdigest()) for k, v in files.items())).encode())
        commits.append((digest.hexdigest(), files))
        return commits[-1][0]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *arguments):
        pass

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def reply_json(self, value, status: int = 200, **headers: str) -> None:
        self.reply(status, json.dumps(value).encode(), Content_Type="application/json", **headers)

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        if parts[:2] == ["api", "models"]:
            repo, rest = "/".join(parts[2:4]), parts[4:]
            revision = rest[1] if len(rest) > 1 else "main"
        else:  # ORG/NAME/resolve/REVISION/FILE
            repo, rest = "/".join(parts[:2]), parts[2:]
            revision = rest[1]
        found = self.hub.files(repo, revision)
        if found is None:
            code = "RevisionNotFound" if repo in self.hub.repositories else "RepoNotFound"
            return self.reply_json({"error": code}, 404, X_Error_Code=code)
        commit, files = found
        if rest[:1] == ["tree"]:
            folder = "/".join(rest[2:])
            names = [name for name in files if not folder or name.startswith(f"{folder}/")]
            if not names:
                return self.reply_json({"error": "no such folder"}, 404, X_Error_Code="EntryNotFound")
            return self.reply_json(
                [{"type": "file", "path": name, "size": len(files[name]), "oid": "0" * 40} for name in names]
            )
        if rest[:1] != ["resolve"]:
            return self.reply_json({"id": repo, "sha": commit, "siblings": [{"rfilename": name} for name in files]})
        name = "/".join(rest[2:])
        if name not in files:
            return self.reply(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        if self.command == "GET":
            self.hub.served.append((commit, name))
        etag = f'"{hashlib.sha1(files[name]).hexdigest()}"'
        self.reply(200, files[name], ETag=etag, X_Repo_Commit=commit, Accept_Ranges="none")

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urlsplit(self.path).path
        origin = f"http://{self.headers['Host']}"
        if path == "/api/repos/create":
            wanted = json.loads(body)
            repo = f"{wanted.get('organization') or 'somebody'}/{wanted['name']}"
            if repo not in self.hub.repositories:
                self.hub.repositories[repo] = [("0" * 40, {".gitattributes": b""})]
            return self.reply_json({"url": f"{origin}/{repo}", "name": repo, "id": repo})
        if path == "/api/validate-yaml":
            return self.reply_json({"errors": [], "warnings": []})
        repo, _, kind = path.removeprefix("/api/models/").rpartition("/")[0].rpartition("/")
        if kind == "preupload":
            wanted = json.loads(body)["files"]
            return self.reply_json(
                {"files": [{"path": x["path"], "uploadMode": "regular", "shouldIgnore": False} for x in wanted]}
            )
        assert kind == "commit", path
        commit = self.hub.commit(repo, [json.loads(line) for line in body.splitlines()])
        self.reply_json({"commitUrl": f"{origin}/{repo}/commit/{commit}", "commitOid": commit, "success": True})


@contextmanager
def serve():
    """Yield `(hub, url)` of a server that runs until the block ends."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("HubHandler", (Handler,), {"hub": hub}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub, f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
