"""Training curves: losses and learning rate over steps, from the Trainer's log history."""

from pathlib import Path


def draw_curves(histories: dict[str, list[dict]], path: Path) -> Path:
    """Write a plot with one panel per stage.

    Args:
        histories (`dict[str, list[dict]]`): stage -> `log_history` of its `trainer_state.json`.
        path: file to write; its extension selects the format.

    Raises:
        `ImportError`: without matplotlib.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(histories), 3.5), layout="constrained")
    panels = figure.subplots(1, len(histories), squeeze=False)[0]
    for panel, (stage, history) in zip(panels, histories.items(), strict=True):
        entries = [entry for entry in history if "loss" in entry]
        steps = [entry["step"] for entry in entries]
        panel.semilogy(steps, [float(entry["loss"]) for entry in entries], color="tab:blue", label="training")
        evaluated = {entry["step"]: float(entry["eval_loss"]) for entry in history if "eval_loss" in entry}
        if evaluated:
            panel.semilogy(evaluated.keys(), evaluated.values(), "o-", color="tab:green", label="validation")
            panel.legend()
        panel.set(title=f"{stage} stage", xlabel="step")
        panel.set_ylabel("loss", color="tab:blue")
        panel.grid(alpha=0.3)
        rate = panel.twinx()
        rate.plot(steps, [float(entry["learning_rate"]) for entry in entries], color="tab:orange", alpha=0.6)
        rate.set_ylabel("learning rate", color="tab:orange")
        rate.set_ylim(bottom=0)
    figure.savefig(path, dpi=120)
    return path
