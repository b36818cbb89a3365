"""LiveSports-3K-CC: which of two commentaries a judge finds closer to what the human said.

The official definition is `evaluation/livesports3kcc/llm_judge.py` of github.com/showlab/livecc at fdaa91e:

- the judge sees both commentaries in both orders (`judge`);
- a reply that has `Commentary A` in it names A, whatever else it has, one with `Commentary B` names B, and any other
  is a tie (`judge_ab`), which no one wins;
- the result is the part of all comparisons that the model wins.

Strictly, a reply that names both is won by no one, and a model wins an event only if it wins in both orders.

The commentary of a stream is what was said, joined as `distributed_generate_livecc.py` does: without ` ...`, with one
space between pieces, and `...` at the end. A polled one is the answer as it is (`distributed_generate_caption.py`).
"""

from ...data.benchmark_items import Item
from .asked_in_order import AskedInOrder
from .outcome import Outcome, PollOrStream
from .reading import apart, micro

ORDERS = ("ab", "ba")
PROMPT = (
    "You are an expert in video commentary. Your task is to review two commentaries (Commentary A and Commentary B), "
    "and select the one that better aligns with the human commentary. You should consider the criteria:\n"
    "1. Semantic Alignment: The commentary should convey the same meaning, details, and key points as the human "
    "commentary.\nIf the above criteria is not enough to judge, then consider:\n"
    "2. Stylistic Consistency: The commentary should maintain a tone, word choice, and structure similar to the human "
    "commentary.\n\n---Commentary A---\n{}\n----------\n\n---Commentary B---\n{}\n----------\n"
    "\n---Human Commentary---\n{}\n----------\n"
    '\nYour response should be "Commentary A is better aligned with the human commentary" or "Commentary B is better '
    'aligned with the human commentary".\n'
)


class LiveSports(AskedInOrder):
    max_new_tokens = 512

    def judge_prompts(self, item: Item, outcome: Outcome) -> list[dict]:
        """None without a baseline, or where the human's words were not published, as in the test set."""
        human, baseline = item.truth["human"], item.truth["baseline"]
        if not human or not baseline:
            return []
        pair = (commentary(outcome), baseline)
        return [
            {"name": order, "prompt": PROMPT.format(*pair[:: 1 if order == "ab" else -1], human)} for order in ORDERS
        ]

    def read_verdict(self, name: str, text: str) -> float:
        """1 if the model wins, else 0: the official reading."""
        named = "A" if "Commentary A" in text else "B" if "Commentary B" in text else None
        return float(named == ("A" if name == "ab" else "B"))

    def score(self, item: Item, outcome: Outcome, protocol: PollOrStream) -> dict:
        verdicts = {verdict["name"]: verdict for verdict in outcome.verdicts}
        if set(verdicts) != set(ORDERS) or any(verdict["value"] is None for verdict in verdicts.values()):
            return {"official": None, "strict": None, "official_hits": [], "strict_hits": []}
        official = [float(verdicts[order]["value"]) for order in ORDERS]
        clear = [
            float(value and named_alone(verdicts[order]["text"]))
            for order, value in zip(ORDERS, official, strict=True)
        ]
        return {
            "official": sum(official) / 2,
            "strict": min(clear),
            "official_hits": official,
            "strict_hits": [min(clear)],
        }

    def summarise(self, items: list[Item], scores: list[dict]) -> dict:
        waiting = sum(score["official"] is None for score in scores)
        return apart(items, scores, micro) | {"waiting for a judge": waiting}


def named_alone(text: str) -> bool:
    return ("Commentary A" in text) != ("Commentary B" in text)


def commentary(outcome: Outcome) -> str:
    if outcome.answers and not outcome.said:
        return outcome.answers[-1]["text"]
    return " ".join(one["text"].replace(" ...", "") for one in outcome.said if one["text"]).strip() + "..."
