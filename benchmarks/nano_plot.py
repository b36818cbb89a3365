"""Plot the training of the bundled checkpoint: its loss, and the tokens it predicts wrongly at each level.

    python -m videollm_mod.benchmarks.nano_plot

It reads `results/nano_training.json`: `parts` has the `result.json` of each part of the training, and `adamw` that of
a first part with AdamW instead of Muon. It writes `results/nano_curves.png`.
"""

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

RESULTS = Path(__file__).resolve().parent / "results"
SHOWN = {"basic": "tab:green", "hard_small": "tab:blue", "hard": "tab:red", "hard_tasks_lessons": "tab:purple"}


def curve(parts: list[dict]) -> list[dict]:
    """The log of the streams' stage, with steps counted over all parts."""
    entries, before = [], 0
    for part in parts:
        own = [entry for entry in part["log"] if entry["stage"] == "stream"]
        entries += [{**entry, "step": before + entry["step"]} for entry in own]
        before = entries[-1]["step"]
    return entries


def draw(training: dict):
    figure, (loss, wrong) = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    muon, adamw = curve(training["parts"]), curve([training["adamw"]])
    for entries, style in ((muon, "-"), (adamw, ":")):
        steps = [entry["step"] for entry in entries]
        name = "Muon" if entries is muon else "AdamW"
        loss.plot(steps, [entry["loss"] for entry in entries], style, color="black", label=name)
        for level, color in SHOWN.items():
            values = [max(100 - entry["right_tokens"][level], 1e-3) for entry in entries]
            wrong.plot(steps, values, style, color=color, label=level if entries is muon else None)
    for axes, title in ((loss, "loss, nats per token"), (wrong, "wrong tokens, % (dotted: AdamW)")):
        for part in range(1, len(training["parts"])):
            axes.axvline(curve(training["parts"][:part])[-1]["step"], color="gray", linewidth=0.6)
        axes.set(yscale="log", xlabel="steps of 128 streams (vertical lines: start of a part)", title=title)
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def main() -> None:
    training = json.loads((RESULTS / "nano_training.json").read_text(encoding="utf-8"))
    draw(training).savefig(RESULTS / "nano_curves.png", dpi=100)
    print(RESULTS / "nano_curves.png")


if __name__ == "__main__":
    main()
