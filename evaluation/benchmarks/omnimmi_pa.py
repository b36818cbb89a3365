"""OmniMMI, proactive alerting: whether the first alert comes while the thing can be seen.

The official definition is the part `pa` of `main` in `evaluations/evaluate.py` of github.com/OmniMMI/OmniMMI at
036d2ca, on the times that `online_inference` in `evaluations/online_inference_utils.py` records:

- an item is right if the first alert is in its span, ends included (`Average Accuracy`, the published number);
- precision is the part of the alerts in the span, IoU that of the span from the first to the last alert; both are 0
  without alerts;
- alerts in the first second are not recorded.

Strictly, an item is right if there are alerts and all are in its span.

The official script only streams. Polls are ours: yes or no at each second; each yes is an alert.
"""

from ...data.benchmark_items import Item
from .asked_in_order import AskedInOrder
from .outcome import Outcome, PollOrStream
from .reading import apart, mean, micro, strict_yes

EXTRA = ("precision", "iou")


class OmniMMIAlerting(AskedInOrder):
    max_new_tokens = 100

    def score(self, item: Item, outcome: Outcome, protocol: PollOrStream) -> dict:
        said = outcome.said if protocol == "stream" else [one for one in outcome.answers if strict_yes(one["text"])]
        return alerts([one["time"] for one in said if int(one["time"]) != 0], *item.truth["span"])

    def summarise(self, items: list[Item], scores: list[dict]) -> dict:
        extra = {name: mean(score[name] for score in scores) for name in EXTRA}
        return apart(items, scores, micro) | {name: 100 * value for name, value in extra.items() if value is not None}


def alerts(times: list[float], start: float, end: float) -> dict:
    if not times:
        return dict.fromkeys(("official", "strict", *EXTRA), 0.0)
    inside = [start <= time <= end for time in times]
    overlap = max(0.0, min(times[-1], end) - max(times[0], start))
    whole = max(times[-1], end) - min(times[0], start)
    return {
        "official": float(inside[0]),
        "strict": float(all(inside)),
        "precision": sum(inside) / len(inside),
        "iou": overlap / whole if whole > 0 else 0.0,
    }
