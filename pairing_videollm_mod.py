"""Whether a processor is that of a model: what the one writes into a sequence is what the other reads there."""

NEEDED = (
    "tokenizer",
    "video_processor",
    "num_frame_tokens",
    "video_token_id",
    "frame_separator_token_id",
    "frame_ids",
    "stream_start_ids",
    "encode_text",
)


def check_pair(model, processor, name: str = "`processor`") -> None:
    """Raise `ValueError` if the processor is none for streams, or that of another model, naming all that differs.

    Both may be of classes that the Hub's loader made anew, so they are known by what they hold.
    """
    if missing := [needed for needed in NEEDED if not hasattr(processor, needed)]:
        raise ValueError(
            f"{name} must be a VideoLLMMoDProcessor, such as `AutoProcessor.from_pretrained` loads from the model's "
            f"folder, got {type(processor).__name__}, which has no `{missing[0]}`"
        )
    differing = [f"its {what} is {own}, the model's {wanted}" for what, own, wanted in differences(model, processor)]
    if differing:
        raise ValueError(f"{name} is that of another model: {'; '.join(differing)}")


def differences(model, processor) -> list[tuple[str, object, object]]:
    """`(what, the processor's, the model's)` of all in which they do not fit together."""
    config, video_processor, tokenizer = model.config, processor.video_processor, processor.tokenizer
    text, side = config.text_config, config.vision_config.image_size
    pairs = [
        ("id of the video token", processor.video_token_id, config.video_token_id),
        ("id of the frame separator", processor.frame_separator_token_id, config.frame_separator_token_id),
        ("number of tokens per frame", processor.num_frame_tokens, config.num_frame_tokens),
    ]
    if video_processor.do_resize:
        size = [video_processor.size.get(name) for name in ("height", "width")]
        pairs.append(("frame size", size, [side, side]))
    found = [pair for pair in pairs if pair[1] != pair[2]]
    if len(tokenizer) > text.vocab_size:
        found.append(("vocabulary size", len(tokenizer), text.vocab_size))
    ends = {own for source in (text, model.generation_config) for own in as_list(source.eos_token_id)}
    if ends and tokenizer.eos_token_id not in ends:
        found.append(("id of the end of sequence", tokenizer.eos_token_id, " or ".join(map(str, sorted(ends)))))
    return found


def as_list(ids: int | list[int] | None) -> list[int]:
    return ids if isinstance(ids, list) else [] if ids is None else [ids]


__all__ = ["check_pair"]
