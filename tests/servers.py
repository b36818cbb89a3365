"""Real servers that tests and benchmarks watch, RTSP, and HTTP that sends a file over and over; and a slow watcher."""

import http.server
import socket
import subprocess
import threading
import time
from pathlib import Path

SERVER = Path(__file__).with_name("rtsp_server.py")
PYTHON = "/usr/bin/python3"  # Debian's, which sees gi
NEEDS = (
    "needs an RTSP server: apt-get install gir1.2-gst-rtsp-server-1.0 python3-gi gstreamer1.0-plugins-base "
    "gstreamer1.0-plugins-good gstreamer1.0-plugins-bad gstreamer1.0-plugins-ugly"
)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


class RtspServer:
    """A process that serves `url`; killed and started at will.

    Raises:
        `OSError`: if this machine has no such server.
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
    """HTTP on a thread: `/once` sends a file with its length, `/cut` the same but at first hangs up halfway, `/loop`
    sends it over and over without one and hangs up after `rounds`."""

    def __init__(self, path: Path, rounds: int = 3, pause: float = 0.0):
        content, server = path.read_bytes(), self
        self.requests = 0

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                server.requests += 1
                start = int((self.headers.get("Range") or "bytes=0-").split("=")[1].split("-")[0])
                self.send_response(206 if "Range" in self.headers and self.path != "/loop" else 200)
                self.send_header("Content-Type", "video/mp2t")
                if self.path == "/loop":
                    self.end_headers()
                    for _ in range(rounds):
                        self.wfile.write(content)
                        time.sleep(pause)
                    return
                self.send_header("Accept-Ranges", "bytes")
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
                self.send_header("Content-Length", str(len(content) - start))
                self.end_headers()
                stop = len(content) // 2 if self.path == "/cut" and start < len(content) // 2 else len(content)
                self.wfile.write(content[start:stop])

            def log_message(self, *_):
                pass

            def handle(self):
                try:
                    super().handle()
                except OSError:  # whoever reads has enough of it
                    self.close_connection = True

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Slow:
    """A session that takes its time over each frame."""

    def __init__(self, session, seconds: float):
        self._session, self.seconds = session, seconds

    def __getattr__(self, name):
        return getattr(self._session, name)

    def watch_encoded(self, features, times):
        for watched in self._session.watch_encoded(features, times):
            time.sleep(self.seconds)
            yield watched
