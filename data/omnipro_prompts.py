"""What the official scripts of OmniPro ask: before and after each event, or once, for the whole stream.

The wording is that of `build_probe_prompt` and `build_online_session_prompt` in `utils/prompts.py` of
github.com/RuixiangZhao/OmniPro at 13aa8e5.
"""

LISTEN = "Listen carefully to both the visual and audio content of this video stream"
REGIONS = (
    ("top-left", "top-center", "top-right"),
    ("center-left", "center", "center-right"),
    ("bottom-left", "bottom-center", "bottom-right"),
)
NO_PREAMBLE = '- Do NOT add any preamble like "The answer is" or "Therefore".'
ONE_INTEGER = (
    "FORMAT REQUIREMENT (strict):\n"
    "- Reply with a SINGLE INTEGER only (e.g. 0, 1, 2, 3).\n"
    "- Do NOT include any words, explanations, punctuation, timestamps, units, quotes, or line breaks.\n"
)
BEGIN_WITH = "- Start your response with the single token YES or NO.\n"
ONE_LETTER = "Answer with ONLY the single letter of your choice ({letters}). Do not include any other text."


def clock(seconds: float) -> str:
    return f"{int(seconds) // 60:02d}:{int(seconds) % 60:02d}"


def regions(indent: str) -> str:
    return "\n".join(indent + " | ".join(row) for row in REGIONS)


def whether(sample: dict, noun: str, before: int) -> str:
    """The question of a prompt on an event, and a note on those `before` it."""
    text = (
        f"Did {sample['event']} in this video? YES or NO." if sample.get("event") else as_question(sample["question"])
    )
    if before:
        text += (
            f"\nNote: this {noun} has already happened {before} time{'s' if before > 1 else ''} earlier in the video. "
            "Focus ONLY on the most recent occurrence; do NOT answer YES if you are only relying on those earlier "
            "occurrences."
        )
    return text + "\n"


VERBS = ("let me know", "alert me", "notify me", "tell me")
CUES = [f"{verb} {cue} " for verb in VERBS for cue in ("when", "whenever", "if", "once")]
POLITE = [
    *(f"please let me know {cue} " for cue in ("when", "whenever", "if", "once")),
    *(f"please {verb} when " for verb in ("alert me", "notify me", "tell me")),
]


def as_question(instruction: str) -> str:
    """`Let me know when a dog barks.` -> `Did a dog barks in this video? YES or NO.`"""
    lower = instruction.lower().strip()
    for cue in (*CUES, *POLITE):
        if lower.startswith(cue):
            return f"Did {instruction[len(cue) :].rstrip('.')} in this video? YES or NO."
    if instruction.rstrip().endswith("?"):
        return instruction
    return f"Did the following happen in this video: {instruction.rstrip('.')}? YES or NO."


def alert(sample: dict, time: float, before: int, noun: str) -> str:
    return (
        f"{LISTEN} (up to {clock(time)}).\n{whether(sample, noun, before)}FORMAT REQUIREMENT (strict):\n{BEGIN_WITH}"
        "- If YES, follow with a colon and a brief description: `YES: <description>`.\n"
        f"- If NO, reply with just `NO`.\n{NO_PREAMBLE}"
    )


def grounding(sample: dict, time: float, before: int) -> str:
    return (
        f"{LISTEN} (up to {clock(time)}).\n{whether(sample, 'event', before)}Evidence requirement:\n"
        "- Answer YES only if you can identify the specific audible words, visible action, or on-screen text in the "
        "clip that constitutes the event.\n"
        "- Do not infer, predict, or imagine content that is not directly present in the clip's audio or video.\n"
        f"If YES, also tell me the position of {sample.get('target') or 'the target object'} in the frame where the "
        f"event occurred, choosing ONE of the following 9 regions:\n{regions('  ')}\n\n"
        f"FORMAT REQUIREMENT (strict):\n{BEGIN_WITH}"
        "- If YES, use format: `YES: <brief description>. Position: <one of the 9 regions>`.\n"
        f"- If NO, reply with just `NO`.\n{NO_PREAMBLE}"
    )


def snapshot(sample: dict, time: float, before: int) -> str:
    return (
        f"{LISTEN} (up to {clock(time)}).\n{whether(sample, 'event', before)}"
        f"If YES, count {sample.get('target') or 'the requested objects'} in the frame where the event occurred.\n\n"
        "FORMAT REQUIREMENT (strict):\n- Start your response with YES or NO.\n"
        "- If YES, use exactly this format: `YES: <integer>`. e.g. `YES: 5`.\n"
        f"- If NO, reply with just `NO`.\n{NO_PREAMBLE}"
    )


def cumulative(sample: dict, time: float) -> str:
    return (
        f'{LISTEN} (up to {clock(time)}).\nThe user asked: "{sample["question"]}"\n'
        "Based on everything in the video so far, how many times has this happened?\n\n"
        f"{ONE_INTEGER}- 0 is the correct answer if it has not happened yet."
    )


def distinct(sample: dict, time: float) -> str:
    return (
        f'{LISTEN} (up to {clock(time)}).\nThe user asked: "{sample["question"]}"\n'
        "Based on everything in the video so far, how many DISTINCT such items have appeared? Do not double-count the "
        f"same item when it appears multiple times.\n\n{ONE_INTEGER}"
        "- 0 is the correct answer if none have appeared yet."
    )


def state(sample: dict, time: float) -> str:
    listed = "\n".join(f"  - {name}" for name in sample.get("states") or [])
    return (
        f"{LISTEN}.\nThe video clip shown ends at {clock(time)}. You are being asked about the state at the VERY END "
        f'of the clip, NOT the overall video.\n\nThe user asked: "{sample["question"]}"\n\n'
        "At the final moment of the clip (the last 1-2 seconds), which of the following states is currently active?\n"
        f"Possible states:\n{listed}\n\nEven if earlier parts of the video showed a different state, answer based "
        "on the CURRENT state at the end of the clip.\nAnswer with ONLY one state from the list above, using the "
        "exact same wording. Do not include any other text."
    )


def lettered(options: list[str]) -> tuple[str, str]:
    """The lines of the options, and their letters."""
    letters = [chr(65 + index) for index in range(len(options))]
    lines = "\n".join(f"  ({letter}) {option}" for letter, option in zip(letters, options, strict=True))
    return lines, ONE_LETTER.format(letters=", ".join(f"({letter})" for letter in letters))


def narration(sample: dict, time: float, options: list[str]) -> str:
    lines, answer = lettered(options)
    return (
        f"You are watching a video stream. The clip shown so far runs up to {clock(time)}.\n"
        f'The user asked: "{sample["question"]}"\n\nSeveral candidate narration summaries are listed below. Which ONE '
        f"best describes what has just happened in the video at the current moment (around {clock(time)})?\n\n"
        f"{lines}\n\n{answer}"
    )


def next_step(sample: dict, time: float, options: list[str]) -> str:
    lines, answer = lettered(options)
    return (
        f"You are watching a tutorial video stream. The clip shown so far runs up to {clock(time)}.\n"
        f'The user asked: "{sample["question"]}"\n\nBased on the progress in the video so far, which ONE of the '
        "following steps should the user perform NEXT?\n\nImportant:\n"
        "- You are being asked to PREDICT the upcoming step BEFORE it starts. Do NOT describe what is currently on "
        "screen — the next step has not happened yet.\n"
        "- Some listed options describe steps that have ALREADY been completed earlier in the video. Do NOT pick "
        "those.\n"
        "- Some listed options describe steps that come much later. Pick the ONE that should logically come "
        f"IMMEDIATELY NEXT given what has just finished.\n\n{lines}\n\n{answer}"
    )


ASKED = ' The user asked:\n  "{question}"\n\nRules:\n'
OF_EVENT = "Watch this live video stream and monitor for the {what} described below." + ASKED
OF_STREAM = "Watch this live video stream." + ASKED
ONLINE = {
    "instant_event_alert": OF_EVENT.replace("{what}", "event")
    + "- If the event is NOT happening right now, stay completely silent (output nothing).\n"
    "- If the event has just occurred, briefly describe what happened in one sentence.\n"
    "- Do NOT repeat yourself: once you have alerted for an occurrence, do NOT alert again for the SAME occurrence. "
    "Only alert again if a NEW, separate occurrence happens later.",
    "semantic_condition_alert": OF_EVENT.replace("{what}", "semantic condition")
    + "- If the condition is not currently satisfied, stay silent.\n"
    "- When the condition becomes satisfied, briefly describe what made the condition hold in one sentence.\n"
    "- Do NOT repeat yourself: only alert again if the condition becomes satisfied again later in a distinct moment.",
    "event_narration": OF_STREAM
    + "- When a noteworthy event occurs, briefly describe what just happened in one sentence.\n"
    "- Otherwise, stay silent.\n"
    "- Do NOT repeat yourself: only narrate when something substantially new happens.",
    "sequential_step_instruction": OF_STREAM
    + "- When a new step begins or is about to begin, describe the step in one sentence.\n"
    "- Otherwise, stay silent.\n"
    "- Do NOT repeat yourself: announce a step only once when it begins.",
    "explicit_target_grounding": OF_STREAM + "- If the target event has NOT just occurred, stay silent.\n"
    "- When the target event occurs, output in this format:\n    <brief description>. Position: <region>\n"
    f"  where <region> is EXACTLY one of:\n{regions('    ')}\n- Do NOT repeat yourself.",
    "snapshot_counting": OF_STREAM + "- If the trigger condition has NOT yet occurred, stay silent.\n"
    "- When the trigger condition occurs, output ONLY the count as a single integer (e.g. 5). No other text.\n"
    "- Do NOT repeat yourself.",
    "cumulative_counting": OF_STREAM
    + "- When you see a NEW occurrence that increments the cumulative count, output ONLY the updated total as a "
    "single integer (e.g. 3). No other text.\n- Otherwise, stay silent.\n"
    "- Do NOT repeat yourself: emit only once per new occurrence.",
    "dedup_counting": OF_STREAM
    + "- When a NEW, previously-unseen instance appears, output ONLY the updated distinct count as a single integer "
    "(e.g. 2). No other text.\n- Otherwise, stay silent.\n- Do NOT repeat yourself: re-appearances do NOT count.",
    "realtime_state_monitor": OF_STREAM.replace("Rules:", "Possible states:\n{states}\n\nRules:")
    + "- When the monitored state CHANGES, output ONLY the new state name from the list above. No other text.\n"
    "- Otherwise, stay silent.\n- Do NOT repeat yourself: only emit when the state actually changes.",
}


def online(task: str, sample: dict) -> str:
    """What is said once, at the begin of a stream."""
    found = {event[name] for event in sample["ground_truth"] for name in ("state_from", "state_to") if event.get(name)}
    return ONLINE[task].format(question=sample["question"], states="\n".join(f"  - {name}" for name in sorted(found)))
