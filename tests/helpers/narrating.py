"""What the tests of `videollm-mod narrate` share, besides the fixtures `run` and `clip` of `conftest.py`."""

import json
import shutil
from pathlib import Path

import av
import numpy as np
from fork_server import command
from fresh_process import ROOT
from safetensors.torch import load_file, save_file
from video_files import write_sound, write_video

from videollm_mod import VideoLLMMoDConfig
from videollm_mod.data.world import world_stream
from videollm_mod.decoding import decode_video
from videollm_mod.narration.sight import notice

COMMAND = command("narrate")
# what the bundled checkpoint says on standard error about clips whose title does not name the world
NOTE = f"note: {notice(VideoLLMMoDConfig.from_pretrained(ROOT), '-')}\n"


def truth(seed: int) -> list[tuple[float, str]]:
    return world_stream(seed).narrations


def cues(path: Path) -> list[tuple[float, float, str]]:
    """`(start, end, text)` as a player reads them."""
    found = []
    with av.open(str(path)) as container:
        for packet in container.demux(container.streams.subtitles[0]):
            if packet.pts is not None:
                start, length = (float(value * packet.time_base) for value in (packet.pts, packet.duration))
                found.append((start, start + length, bytes(packet).decode()))
    return found


def is_one_line(err: str) -> bool:
    return err.startswith("error: ") and err.count("\n") == 1 and len(err) < 400


def cut_off(clip: Path, path: Path) -> Path:
    """The first half of a video with its index in front: the part that can be decoded is narrated."""
    whole = write_video(path.with_name("whole.mp4"), decode_video(clip, 10)[0], "mjpeg", movflags="faststart")
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    return path


def make_broken(kind: str, folder: Path, clip: Path) -> Path:
    path = folder / "broken.mp4"
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("This is no video.\n" * 100)
    elif kind == "text as text":
        path = folder / "notes.txt"
        path.write_text("This is no video.\n" * 100)
    elif kind == "noise":
        path.write_bytes(np.random.default_rng(3).bytes(200_000))
    elif kind == "index missing":
        path.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
    elif kind == "cut off":
        cut_off(clip, path)
    elif kind == "header only":
        path.write_bytes(clip.read_bytes()[:40])
    elif kind == "audio":
        path = write_sound(folder / "sound.m4a")
    elif kind == "audio with cover":
        path = write_sound(folder / "album.mp4", cover=True)
    elif kind == "directory":
        path.mkdir()
    return path


def broken_checkpoint(kind: str, folder: Path) -> Path:
    shutil.copytree(
        ROOT, folder, ignore=lambda path, names: [n for n in names if not n.endswith((".json", ".safetensors"))]
    )
    if kind == "other kind":
        (folder / "config.json").write_text('{"model_type": "llama"}')
    elif kind == "to be built":
        (folder / "config.json").write_text('{"model_type": "smolvlm"}')
        (folder / "processor_config.json").write_text('{"processor_class": "SmolVLMProcessor"}')
    elif kind == "no configuration":
        (folder / "config.json").write_text("{")
    elif kind == "wrong type":
        config = json.loads((folder / "config.json").read_text())
        config["text_config"]["mod_keep_ratio"] = "a fifth"
        (folder / "config.json").write_text(json.dumps(config))
    elif kind == "out of range":
        config = json.loads((folder / "config.json").read_text())
        config["text_config"]["mod_keep_ratio"] = 3
        (folder / "config.json").write_text(json.dumps(config))
    elif kind == "truncated":
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:100_000])
    elif kind == "weights missing":
        tensors = load_file(folder / "model.safetensors")
        kept = {name: value for name, value in tensors.items() if "layers.3.mlp" not in name}
        save_file(kept, folder / "model.safetensors", {"format": "pt"})
    elif kind == "no rate":
        config = json.loads((folder / "processor_config.json").read_text())
        config["video_processor"]["fps"] = None
        (folder / "processor_config.json").write_text(json.dumps(config))
    elif kind == "no processor":
        (folder / "processor_config.json").write_text("[]")
    elif kind == "no tokenizer":
        (folder / "tokenizer.json").unlink()
        (folder / "tokenizer_config.json").unlink()
    return folder
