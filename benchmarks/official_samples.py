"""Samples in the published schemas of benchmarks whose files are not in their repositories."""

import random

from ..data.omnipro import GROUPS
from ..evaluation.benchmarks.omnipro_answers import REGIONS

STATES = ["playing", "not playing", "paused"]


def omnipro_samples(of_each: int = 20) -> list[dict]:
    """Samples of all nine tasks, as in `benchmark.json`."""
    samples = []
    for task in GROUPS:
        for number in range(of_each):
            draw = random.Random(f"{task} {number}")
            times = sorted(draw.sample(range(2, 110), draw.randint(1, 5)))
            states = [draw.choice(STATES)]
            for _ in times:
                states.append(draw.choice([state for state in STATES if state != states[-1]]))
            events = [
                {
                    "trigger_time": f"{time // 60:02d}:{time % 60:02d}",
                    "trigger_time_sec": time,
                    "response": f"Thing {index} of {number} happens.",
                    "position": draw.choice(REGIONS),
                    "count": index + 1 if task != "snapshot_counting" else draw.randint(0, 9),
                    "state_from": states[index],
                    "state_to": states[index + 1],
                }
                for index, time in enumerate(times)
            ]
            if task == "realtime_state_monitor":
                events = [{name: value for name, value in event.items() if name != "count"} for event in events]
            samples.append(
                {
                    "id": f"{task}_{number}",
                    "task": task,
                    "video_id": f"v{number}",
                    "video_path": f"raw_videos/v{number}.mp4",
                    "question": draw.choice(["Let me know when it rains.", "Count the dogs?", "Alert me if it opens"]),
                    "question_time": draw.choice(["00:00", "00:01"]),
                    "duration": draw.choice([112, 115.5]),
                    "event": draw.choice([None, "a dog bark"]),
                    "target": draw.choice([None, "the dog"]),
                    "states": STATES if task == "realtime_state_monitor" else None,
                    "audio_dependency": "none",
                    "ground_truth": events,
                }
            )
    return samples


def proactive_annotations(count: int = 60) -> list[dict]:
    """Annotations as in `anno.json` of ProactiveVideoQA."""
    annotations = []
    for number in range(count):
        draw = random.Random(f"proactive {number}")
        answers, time = [], draw.uniform(0, 5)
        for index in range(draw.randint(1, 4)):
            related = [round(time, 2), round(time + draw.uniform(1, 12), 2)]
            reply = [related[0], round(related[1] + 1.0, 2)]
            answers.append(
                {
                    "role": "assistant",
                    "content": f"Answer {index}.",
                    "related_timespan": related,
                    "reply_timespan": reply,
                }
            )
            time = related[1] + draw.uniform(0, 4)
        question = {"role": "user", "content": "What is shown?", "time": 0}
        annotations.append(
            {
                "video": f"clip={number}.mp4",
                "question_id": f"clip={number}.mp4",
                "conversation": [question],
                "answer": answers,
                "duration": round(time + 5, 2),
            }
        )
    return annotations
