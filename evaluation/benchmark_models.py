"""The model that a benchmark is run with: a checkpoint of this package, a server's, or a stock one."""

from ..loading.checkpoint import choose_device, load_checkpoint, weights_options
from ..loading.find import find_checkpoint
from .benchmark_options import OTHERS_FPS, BenchmarkOptions
from .benchmark_views import Model
from .chat_server import LONGEST_SIDE, QUALITY, ChatServer
from .fingerprint import fingerprint_of, fingerprint_of_found
from .image_views import ImageModel, ServerModel, StockModel
from .session_view import SessionModel


def about_model(options: BenchmarkOptions) -> dict:
    """What tells the model from others, without loading it."""
    fps = {"fps": options.fps or OTHERS_FPS, "max_frames": options.max_frames}
    if options.endpoint is not None:
        images = {"longest_side": LONGEST_SIDE, "jpeg_quality": QUALITY}
        return {"endpoint": options.endpoint, "model": options.endpoint_model, **fps, **images}
    if options.stock is not None:
        return {
            "stock": options.stock.name,
            "model": fingerprint_of(str(options.stock)),
            "dtype": options.dtype,
            **fps,
        }
    model = fingerprint_of_found(find_checkpoint(options.model))
    given = {name: getattr(options, name) for name in ("threshold", "keep_ratio", "dtype")}
    return {"model": model, **given}


def load_model(options: BenchmarkOptions, device: str) -> Model:
    if options.endpoint is not None:
        of: ServerModel | StockModel = ServerModel(
            ChatServer(options.endpoint, str(options.endpoint_model), options.endpoint_key_env)
        )
    elif options.stock is not None:
        chosen = choose_device(device)
        of = StockModel(options.stock, chosen, weights_options(chosen, options.dtype, False)["dtype"])
    else:
        model, processor = load_checkpoint(options.model, device=device, dtype=options.dtype)
        return SessionModel(model, processor, options.threshold, options.keep_ratio)
    return ImageModel(of, options.fps or OTHERS_FPS, options.max_frames)


__all__ = ["about_model", "load_model"]
