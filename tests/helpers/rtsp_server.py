"""A real RTSP server, run with Debian's Python: `rtsp_server.py PORT FPS`.

It serves a test picture at /stream with FPS frames per second, and prints `ready` once it listens. It needs
gir1.2-gst-rtsp-server-1.0, python3-gi and the base, good, bad and ugly plugins of GStreamer.
"""

import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402

PICTURE = "videotestsrc is-live=true pattern=ball ! video/x-raw,width=192,height=192,framerate=FPS/1"
ENCODE = "videoconvert ! x264enc tune=zerolatency speed-preset=ultrafast key-int-max=FPS"
SEND = "rtph264pay name=pay0 pt=96"


def main(port: str, fps: str) -> None:
    Gst.init(None)
    for element in ("x264enc", "rtph264pay", "videotestsrc"):
        if Gst.ElementFactory.find(element) is None:
            sys.exit(f"no element {element}")
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(port)
    factory = GstRtspServer.RTSPMediaFactory()
    factory.set_launch(f"( {PICTURE} ! {ENCODE} ! {SEND} )".replace("FPS", fps))
    factory.set_shared(True)
    server.get_mount_points().add_factory("/stream", factory)
    server.attach(None)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    GLib.MainLoop().run()


if __name__ == "__main__":
    main(*sys.argv[1:])
