"""Calibration of the probability of speaking, and a sweep of the threshold.

Shapes: S decisions, one after each frame.
"""

from pathlib import Path

import numpy as np


def _checked(silence, should_speak) -> tuple[np.ndarray, np.ndarray]:
    silence, should_speak = np.asarray(silence, dtype=float), np.asarray(should_speak, dtype=bool)
    if silence.ndim != 1 or silence.shape != should_speak.shape or not len(silence):
        raise ValueError(
            f"`silence` and `should_speak` must be [S], S >= 1, got {silence.shape} and {should_speak.shape}"
        )
    if not ((silence >= 0) & (silence <= 1)).all():
        raise ValueError("`silence` must be probabilities in [0, 1]")
    return silence, should_speak


def calibration(silence, should_speak, num_bins: int = 10) -> dict:
    """Expected calibration error of the probability of speaking, and for each bin the number of decisions, the mean
    probability, and the share of decisions to speak.

    Args:
        silence (float `[S]`): probability of silence.
        should_speak (bool `[S]`): the true decisions.
    """
    silence, should_speak = _checked(silence, should_speak)
    speak, bins = 1 - silence, []
    index = np.minimum((speak * num_bins).astype(int), num_bins - 1)
    for number in range(num_bins):
        here = index == number
        if here.any():
            bins.append(
                {
                    "count": int(here.sum()),
                    "probability": float(speak[here].mean()),
                    "share": float(should_speak[here].mean()),
                }
            )
    error = sum(b["count"] * abs(b["probability"] - b["share"]) for b in bins) / len(speak)
    return {"expected_calibration_error": error, "bins": bins}


THRESHOLDS = tuple(np.linspace(0, 1, 21))


def sweep(silence, should_speak, thresholds=THRESHOLDS) -> list[dict[str, float]]:
    """Precision, recall and F1 (percent) of speaking when P(silence) is below each threshold."""
    silence, should_speak = _checked(silence, should_speak)
    rows = []
    for threshold in thresholds:
        speaks = silence < threshold
        right, said, true = int((speaks & should_speak).sum()), int(speaks.sum()), int(should_speak.sum())
        rows.append(
            {
                "threshold": float(threshold),
                "precision": 100 * right / max(1, said),
                "recall": 100 * right / max(1, true),
                "f1": 200 * right / max(1, said + true),
            }
        )
    return rows


def check_plot(path: str | Path) -> None:
    """Raise `ImportError` without matplotlib, and `ValueError` for a file format that it cannot write."""
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError as error:
        raise ImportError("a plot needs matplotlib: pip install videollm-mod[eval]") from error
    if Path(path).suffix.removeprefix(".").lower() not in FigureCanvasBase.filetypes:
        raise ValueError(f"the file name of a plot must end in .png, .svg or .pdf, got {path}")


def plot_speaking(rows: list[dict[str, float]], calibrated: dict, path: str | Path) -> None:
    """Plot the sweep, and a calibration curve: the share of decisions to speak over the predicted probability. The
    extension of the path selects the format.

    Raises:
        as `check_plot`.
    """
    check_plot(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, label in {"precision": "precision", "recall": "recall", "f1": "F1"}.items():
        left.plot([row["threshold"] for row in rows], [row[name] for row in rows], label=label)
    left.set(xlabel="threshold of P(silence)", ylabel="decisions to speak, %", xlim=(0, 1), ylim=(0, 102))
    left.legend()
    bins = calibrated["bins"]
    right.plot([0, 1], [0, 1], color="0.8", linestyle="--", label="perfectly calibrated")
    right.plot(
        [b["probability"] for b in bins],
        [b["share"] for b in bins],
        marker="o",
        label="model (number of frames)",
    )
    for b in bins:
        side, offset = ("right", (-7, 5)) if b["share"] > 0.5 else ("left", (7, -11))
        right.annotate(f"{b['count']:,}", (b["probability"], b["share"]), offset, textcoords="offset points", ha=side)
    error = calibrated["expected_calibration_error"]
    right.set(xlabel="P(speaking)", ylabel="share of frames with a reply", xlim=(-0.1, 1.1))
    right.set(ylim=(-0.1, 1.25), title=f"expected calibration error {error:.4f}")
    right.legend(loc="upper left")
    figure.savefig(path, dpi=120)
