"""Split a checkpoint over several processes, and write the results of each; run by tests/test_placement.py.

torchrun --nproc_per_node 2 two_halves.py CHECKPOINT INPUTS OUTPUT
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor

from videollm_mod import VideoLLMMoDForConditionalGeneration

if __name__ == "__main__":
    checkpoint, inputs, output = sys.argv[1:]
    torch.set_num_threads(1)
    model = VideoLLMMoDForConditionalGeneration.from_pretrained(checkpoint, tp_plan="auto", dtype=torch.float32).eval()
    rank = torch.distributed.get_rank()
    inputs = load_file(inputs)
    with torch.no_grad():
        out = model(**inputs, output_router_scores=True)
        said = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    logits = out.logits.full_tensor() if isinstance(out.logits, DTensor) else out.logits
    held = sum(
        (p.to_local() if isinstance(p, DTensor) else p).numel()
        for name, p in model.named_parameters()
        if "language_model.layers" in name
    )
    kept = torch.stack([layer for layer in out.kept_indices if layer is not None])
    tensors = {"logits": logits.contiguous(), "said": said, "kept": kept, "held": torch.tensor(held)}
    save_file(tensors, Path(output) / f"{rank}.safetensors")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
