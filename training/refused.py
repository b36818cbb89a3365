"""Which of transformers' `TrainingArguments` do not go with streams, and why."""

from transformers import TrainingArguments

# name -> values that change nothing, what is wrong with others
REFUSED = {
    "label_smoothing_factor": (
        (0.0,),
        "it takes the labels from the model, smooths them one token off, and forgets `stream_loss_weight`",
    ),
    "label_names": ((None, ["labels"]), "without `labels` there is no loss to evaluate"),
    "remove_unused_columns": ((False,), "columns are made on the fly, and it would take out the frames"),
    "use_liger_kernel": ((False,), "Liger has no kernels for this model"),
    "fp16_full_eval": ((False,), "it rounds the routers, which stay in float32; `fp16` evaluates by autocast"),
    "bf16_full_eval": ((False,), "it rounds the routers, which stay in float32; `bf16` evaluates by autocast"),
    "parallelism_config": ((None,), "tokens and frames of a stream cannot be split over devices"),
    "predict_with_generate": (
        (False, None),
        "a stream is no prompt with one answer; `videollm-mod evaluate` watches it",
    ),
}


def refuse(arguments: TrainingArguments, streaming: bool = False) -> None:
    """Raise `ValueError` for arguments that do not go with streams.

    Args:
        streaming (`bool`): examples come from a data set without a length.
    """
    for name, (allowed, reason) in REFUSED.items():
        value = getattr(arguments, name, allowed[0])
        if value not in allowed:
            raise ValueError(f"`{name}` must be {allowed[0]!r}, got {value!r}: {reason}")
    dispatch = arguments.accelerator_config.dispatch_batches
    if dispatch or (dispatch is None and streaming):
        raise ValueError(
            f"`dispatch_batches` of `accelerator_config` must be False, got {dispatch!r}: accelerate would cut a "
            "batch by rows, but it holds more frames than rows"
        )
