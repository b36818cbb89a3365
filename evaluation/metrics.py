"""All metrics in one namespace. Each is a pure function of arrays or texts."""

from .answers import Taxonomy, actions, anticipation, edit_distance, edit_distance_at, listed, nearest, right_steps
from .captions import caption_scores
from .self_conditioned import best_pairs, precision_recall_f1, segments, temporal_iou
from .speaking import calibration, plot_speaking, sweep
from .teacher_forced import (
    TurnScores,
    frame_difference,
    leading,
    num_following,
    score_turn,
    summarise,
    wants_to_speak,
)

__all__ = [
    "Taxonomy",
    "TurnScores",
    "actions",
    "anticipation",
    "best_pairs",
    "calibration",
    "caption_scores",
    "edit_distance",
    "edit_distance_at",
    "frame_difference",
    "leading",
    "listed",
    "nearest",
    "num_following",
    "plot_speaking",
    "precision_recall_f1",
    "right_steps",
    "score_turn",
    "segments",
    "summarise",
    "sweep",
    "temporal_iou",
    "wants_to_speak",
]
