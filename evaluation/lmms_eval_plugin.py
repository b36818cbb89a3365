"""What lmms-eval loads from the entry point `lmms_eval.models`: where the model is, without importing it."""


def manifest():
    """The `ModelManifest` of the model `videollm_mod`, for chat and for simple tasks."""
    from lmms_eval.models.registry_v2 import ModelManifest

    module = f"{__package__}.lmms_eval_model"
    return ModelManifest(
        model_id="videollm_mod",
        simple_class_path=f"{module}.SimpleModel",
        chat_class_path=f"{module}.ChatModel",
        aliases=("videollm-mod",),
    )


__all__ = ["manifest"]
