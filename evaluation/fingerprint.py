"""What tells one checkpoint from another."""

import hashlib
from pathlib import Path

CONFIGURATIONS = ("config.json", "processor_config.json", "tokenizer.json", "adapter_config.json")


def fingerprint_of(folder: str) -> str:
    """Hash of the configuration and weights of a checkpoint or adapter. A Hub id is returned as it is."""
    if not Path(folder).is_dir():
        return folder
    digest = hashlib.sha256()
    names: list[str | Path] = [*CONFIGURATIONS, *Path(folder).glob("*.safetensors")]
    for file in sorted(Path(folder) / name for name in names):
        if file.is_file():
            with open(file, "rb") as content:
                digest.update(file.name.encode() + hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()[:16]


def fingerprint_of_found(found) -> str:
    """That of what `find_checkpoint` found, an adapter before its base model."""
    return " on ".join(fingerprint_of(str(source)) for source in (found.adapter, found.base) if source)


__all__ = ["fingerprint_of", "fingerprint_of_found"]
