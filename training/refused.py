"""The `TrainingArguments` of transformers that training on streams does not support, and why."""

from transformers import TrainingArguments

# name -> (allowed values, why others are refused)
REFUSED = {
    "label_smoothing_factor": (
        (0.0,),
        "it would compute the loss outside the model, with labels off by one token and without `stream_loss_weight`",
    ),
    "label_names": ((None, ["labels"]), "the evaluation loss needs `labels`"),
    "remove_unused_columns": ((False,), "columns are made on the fly, and it would remove the frames"),
    "use_liger_kernel": ((False,), "Liger has no kernels for this model"),
    "fp16_full_eval": ((False,), "it would round the routers, which stay in float32; `fp16` evaluates with autocast"),
    "bf16_full_eval": ((False,), "it would round the routers, which stay in float32; `bf16` evaluates with autocast"),
    "parallelism_config": ((None,), "tokens and frames of a stream cannot be split over devices"),
    "predict_with_generate": (
        (False, None),
        "a stream is not a prompt with one answer; use `videollm-mod evaluate`",
    ),
}


def refuse(arguments: TrainingArguments, streaming: bool = False) -> None:
    """Raise `ValueError` for arguments that training on streams does not support.

    Args:
        streaming (`bool`): the data set is iterable and has no length.
    """
    for name, (allowed, reason) in REFUSED.items():
        value = getattr(arguments, name, allowed[0])
        if value not in allowed:
            raise ValueError(f"`{name}` must be {allowed[0]!r}, got {value!r}: {reason}")
    # `TrainingArguments` makes it an object, from a mapping or a file
    dispatch = arguments.accelerator_config.dispatch_batches  # type: ignore[union-attr]
    if dispatch or (dispatch is None and streaming):
        raise ValueError(
            f"`dispatch_batches` of `accelerator_config` must be False, got {dispatch!r}: accelerate would slice "
            "frames by rows, but a batch has more frames than rows"
        )
