"""A check that all ways of a training step agree on this device: bfloat16 gradients against float32 gradients."""

import torch

from ..recomputing import CHOICES
from .step import Bench, Way

LARGEST = 0.05  # relative norm of the error of all gradients; bfloat16 rounds by 0.4% to 0.8%


def gradients(bench: Bench, way: Way) -> tuple[float, dict[str, torch.Tensor]]:
    loss = bench.backward(way)
    found = {n: p.grad.float().cpu() for n, p in bench.adapted.named_parameters() if p.grad is not None}
    bench.optimizer.zero_grad()
    return loss.item(), found


def relative(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    difference = sum((got[name] - expected[name]).square().sum() for name in expected) ** 0.5
    return float(difference / sum(value.square().sum() for value in expected.values()) ** 0.5)


def check(device: str, geometry: str = "middle", frames: int = 120, tokens: int = 10) -> dict[str, dict]:
    """For each way, its loss and the error of its gradients against float32 without recomputation. Tokens are selected
    uniformly, since close learned scores can select other tokens in another dtype.

    Raises:
        `ValueError`: if an error is larger than `LARGEST`, naming all such ways.
    """
    exact = Bench(geometry, frames, tokens, device, torch.float32, mod_selection="uniform")
    rounded = Bench(geometry, frames, tokens, device, mod_selection="uniform")
    state = {name: value.to(exact.device) for name, value in rounded.adapted.state_dict().items()}
    exact.adapted.load_state_dict(state)
    exact.inputs["video_features"] = rounded.inputs["video_features"].float()
    result = {}
    for routed in (True, False):
        loss, expected = gradients(exact, Way(routed, recompute="none"))
        ways = [Way(routed, recompute=choice) for choice in CHOICES]
        ways += [Way(routed, all_logits=True), Way(routed, stock=True)]
        for way in ways:
            own, got = gradients(rounded, way)
            error = relative(got, expected)
            result[f"{way.name}, {way.recompute}"] = {"loss": own, "float32": loss, "gradient_error": error}
            if got.keys() != expected.keys():
                raise ValueError(f"{way} has other gradients than float32: {sorted(got.keys() ^ expected.keys())[:5]}")
    far = {name: entry for name, entry in result.items() if not entry["gradient_error"] < LARGEST}
    if far:
        raise ValueError(f"gradients differ from those of float32: {far}")
    return result
