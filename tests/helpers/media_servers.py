"""Real RTSP and HTTP servers for tests and benchmarks, and a slow session."""

import http.server
import socket
import subprocess
import threading
import time
from pathlib import Path

SERVER = Path(__file__).with_name("rtsp_server.py")
PYTHON = "/usr/bin/python3"  # Debian's Python, which has gi
NEEDS = (
    "needs an RTSP server: apt-get install gir1.2-gst-rtsp-server-1.0 python3-gi gstreamer1.0-plugins-base "
    "gstreamer1.0-plugins-good gstreamer1.0-plugins-bad gstreamer1.0-plugins-ugly"
)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


class RtspServer:
    """A process that serves `url`, and can be killed and restarted.

    Raises:
        `OSError`: if the server is not installed.
    """

    def __init__(self, fps: int = 10):
        self.port, self.fps = free_port(), fps
        self.url = f"rtsp://127.0.0.1:{self.port}/stream"
        self.start()

    def start(self) -> None:
        command = [PYTHON, str(SERVER), str(self.port), str(self.fps)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        if self.process.stdout.readline() != "ready\n":
            self.kill()
            raise OSError(NEEDS)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


class FileServer:
    """HTTP on a thread. `/once` sends a file with its length, `/cut` the same but at first hangs up halfway.

    Without a length, `/chunks` sends it in chunks to their end, `/plain` until it hangs up, and `/loop` over and over,
    in chunks that break off after `rounds`. Any other address is a file beside it, with its length.
    """

    def __init__(self, path: Path, rounds: int = 3, pause: float = 0.0):
        content, server = path.read_bytes(), self
        self.requests, self.logins = 0, set()

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                server.requests += 1
                server.logins.add(self.headers.get("Authorization"))
                self.close_connection = True
                unsized = {"/chunks": self.send_chunks, "/plain": self.send_plain, "/loop": self.send_loop}
                if self.path in unsized:
                    self.send_response(200)
                    self.send_header("Content-Type", "video/mp2t")
                    unsized[self.path]()
                else:
                    self.send_sized(self.path, content)

            def send_chunks(self, rounds=1, pause=0.0, ended=True):
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                for _ in range(rounds):
                    for start in range(0, len(content), 4096):
                        chunk = content[start : start + 4096]
                        self.wfile.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
                    time.sleep(pause)
                if ended:
                    self.wfile.write(b"0\r\n\r\n")

            def send_loop(self):
                self.send_chunks(rounds, pause, ended=False)

            def send_plain(self):
                self.send_header("Connection", "close")
                self.end_headers()
                self.wfile.write(content)

            def send_sized(self, name: str, content: bytes):
                if name not in ("/once", "/cut"):
                    content = path.with_name(name[1:]).read_bytes()
                start = int((self.headers.get("Range") or "bytes=0-").split("=")[1].split("-")[0])
                self.send_response(206 if "Range" in self.headers else 200)
                self.send_header("Accept-Ranges", "bytes")
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
                self.send_header("Content-Length", str(len(content) - start))
                self.end_headers()
                stop = len(content) // 2 if name == "/cut" and start < len(content) // 2 else len(content)
                self.wfile.write(content[start:stop])

            def log_message(self, *_):
                pass

            def handle(self):
                try:
                    super().handle()
                except OSError:  # the client has disconnected
                    self.close_connection = True

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Slow:
    """A session that is slow for each frame."""

    def __init__(self, session, seconds: float):
        self._session, self.seconds = session, seconds

    def __getattr__(self, name):
        return getattr(self._session, name)

    def watch_encoded(self, features, times):
        for watched in self._session.watch_encoded(features, times):
            time.sleep(self.seconds)
            yield watched
