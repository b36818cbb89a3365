"""Metrics of segments of self-conditioned narration, as in FlowNar (ICML 2026)."""

Segment = tuple[float, float, str]  # start and end in seconds, text


def segments(narrations: list[tuple[float, str]], end: float) -> list[Segment]:
    """Turn narrations `(seconds, text)`, in order of time, into segments that last until the next one, or `end`."""
    times = [time for time, _ in narrations] + [end]
    return [(start, stop, text) for (start, text), stop in zip(narrations, times[1:], strict=True)]


def temporal_iou(a: Segment, b: Segment) -> float:
    """Intersection over union of two segments in time; 0 if both are empty."""
    shared = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    covered = (a[1] - a[0]) + (b[1] - b[0]) - shared
    return shared / covered if covered > 0 else 0.0


def best_pairs(predicted: list[Segment], true: list[Segment], iou: float = 0.5) -> list[tuple[int, int]]:
    """One-to-one pairs `(index of predicted, index of true)` with an IoU of at least `iou`, highest IoU first."""
    found = [(temporal_iou(p, t), i, j) for i, p in enumerate(predicted) for j, t in enumerate(true)]
    pairs, used_predicted, used_true = [], set(), set()
    for overlap, i, j in sorted(found, key=lambda item: (-item[0], item[1:])):
        if overlap >= iou and i not in used_predicted and j not in used_true:
            pairs.append((i, j))
            used_predicted.add(i)
            used_true.add(j)
    return pairs


def precision_recall_f1(matched: int, predicted: int, true: int) -> dict[str, float]:
    """Precision, recall and F1 in percent, from counts that may be summed over streams; 0 instead of a division by
    zero."""
    if not 0 <= matched <= min(predicted, true):
        raise ValueError(f"`matched` must be in [0, {min(predicted, true)}], got {matched}")
    return {
        "precision": 100 * matched / max(1, predicted),
        "recall": 100 * matched / max(1, true),
        "f1": 200 * matched / max(1, predicted + true),
    }
