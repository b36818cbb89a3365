"""`videollm-mod bench memory`: bytes of the cache, counted exactly, and measured peaks of training."""

from pathlib import Path


def bench(geometry: str, json: Path | None, training: bool) -> None:
    from .cache_bytes import cache_table

    print(cache_table(geometry))
