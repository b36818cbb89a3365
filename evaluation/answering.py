"""Generate a model's answers to questions after streams, for several streams at a time."""

import torch


@torch.no_grad()
def answers(
    model,
    processor,
    conversations: list[list[dict]],
    features: list[torch.Tensor],
    candidates: int = 1,
    max_new_tokens: int = 64,
) -> list[list[str]]:
    """
    Args:
        conversations: messages up to the question, with `num_frames` instead of frames.
        features (`list[Tensor]`): `[F, N, Dv]` of each conversation, on the model's device.
        candidates (`int`): answers per conversation, found by a beam search with as many beams; greedy if 1.

    Returns:
        The candidates of each conversation, best first.
    """
    rows = [processor.encode_conversation(messages, add_generation_prompt=True)[0] for messages in conversations]
    length, pad = max(map(len, rows)), processor.tokenizer.pad_token_id
    frames = torch.cat(features)
    output = model.generate(
        input_ids=torch.tensor([[pad] * (length - len(row)) + row for row in rows], device=model.device),
        attention_mask=torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows], device=model.device),
        video_features=frames if len(frames) else None,
        do_sample=False,
        num_beams=candidates,
        num_return_sequences=candidates,
        max_new_tokens=max_new_tokens,
        eos_token_id=processor.reply_stop_id,
        pad_token_id=pad,
    )
    texts = [processor.decode(ids, skip_special_tokens=True).strip() for ids in output[:, length:]]
    return [texts[index : index + candidates] for index in range(0, len(texts), candidates)]
