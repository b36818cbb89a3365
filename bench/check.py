"""That all ways agree on this device: gradients in bfloat16 of each against float32, by relative norm."""

import torch

from ..recomputing import CHOICES
from .step import Bench, Way

LARGEST = 0.05  # relative norm of the difference of all gradients; bfloat16 has steps of 0.4% to 0.8%


def gradients(bench: Bench, way: Way) -> tuple[float, dict[str, torch.Tensor]]:
    loss = bench.backward(way)
    found = {n: p.grad.float().cpu() for n, p in bench.adapted.named_parameters() if p.grad is not None}
    bench.optimizer.zero_grad()
    return loss.item(), found


def relative(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    difference = sum((got[name] - expected[name]).square().sum() for name in expected) ** 0.5
    return float(difference / sum(value.square().sum() for value in expected.values()) ** 0.5)


def check(device: str, geometry: str = "middle", frames: int = 120, tokens: int = 10) -> dict[str, dict]:
    """Of each way: its loss, and how far its gradients are from those of float32 that keep everything. Tokens are
    chosen uniformly, since learned scores that are close would choose others in other dtypes.

    Raises:
        `ValueError`: if one is further than `LARGEST`, naming all that are.
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
                raise ValueError(f"{way} has gradients of {sorted(got.keys() ^ expected.keys())[:5]}, or lacks them")
    far = {name: entry for name, entry in result.items() if not entry["gradient_error"] < LARGEST}
    if far:
        raise ValueError(f"gradients differ from those of float32: {far}")
    return result
