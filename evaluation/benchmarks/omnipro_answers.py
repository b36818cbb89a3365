"""How OmniPro reads an answer: yes or no, a number, a state, a region, a letter.

The official definitions are `parse_response` in `utils/prompts.py` (of polls) and `parse_streaming_output` in
`utils/online_parser.py` (of streams) of github.com/RuixiangZhao/OmniPro at 13aa8e5.
"""

import re

REGIONS = (
    "top-left",
    "top-center",
    "top-right",
    "center-left",
    "center",
    "center-right",
    "bottom-left",
    "bottom-center",
    "bottom-right",
)
LONGEST_FIRST = sorted(REGIONS, key=len, reverse=True)
CLOCK = r"\b\d{1,2}:\d{2}(?::\d{2})?\b"
NUMBERS = (  # in this order, after times of day are removed
    r"(?:a\s+)?total\s+of\s+(\d+)",
    r"\b(\d+)\s+times?\b",
    r"(?:answer|count|total|number)\s*(?:is|:|=)\s*(\d+)",
    r"(?:reply|response)\s*(?:is|:)\s*['\"]?(\d+)",
    r":\s*(\d+)\s*[\.\)]?\s*$",
)
LETTERS = (
    r"answer\s*(?:is|:)\s*([A-Z])\b",
    r"correct\s*answer\s*(?:is|:)\s*([A-Z])\b",
    r"\boption\s+([A-Z])\b",
    r"\bchoice\s+([A-Z])\b",
    r"response\s*(?:is|:)\s*([A-Z])\b",
    r"\bselect\s+([A-Z])\b",
    r"^\s*([A-Z])\s*[:\.\)]",
)


def says_yes(text: str) -> bool:
    """Whether the word yes comes in an answer, and before the word no."""
    yes, no = (re.search(rf"\b{word}\b", text.strip(), re.IGNORECASE) for word in ("yes", "no"))
    return yes is not None and (no is None or yes.start() < no.start())


def without_clock(text: str) -> str:
    """Without times such as 0:21, also those that were cut off after the colon."""
    return re.sub(r"\b\d{1,2}:(?=\D|$)", " ", re.sub(rf"{CLOCK}[.,]?", " ", text))


def total(text: str) -> int | None:
    """The count of a poll: the whole answer, the number that the first known phrase gives, or the last number."""
    text = text.strip()
    if match := re.match(r"^\s*(\d+)\s*[\.\)]?\s*$", text):
        return int(match[1])
    text = without_clock(text)
    for pattern in NUMBERS:
        if match := re.search(pattern, text, re.IGNORECASE):
            return int(match[1])
    found = re.findall(r"\d+", text)
    return int(found[-1]) if found else None


def snapshot(text: str) -> int | None:
    """The count of a poll that also asks whether something happened: the first number."""
    found = re.findall(r"\d+", without_clock(text.strip()))
    return int(found[0]) if found else None


def state(text: str, states: list[str]) -> str | None:
    """The state that an answer is, or else the longest one in it; of those as long the first."""
    whole = text.strip().lower().strip(' \n\t".,;:!?')
    for name in states:
        if whole == name.lower():
            return name
    return next((name for name in sorted(states, key=len, reverse=True) if name.lower() in whole), None)


def region(text: str) -> str | None:
    """The region of a poll: the one after `position`, or else the longest name in the answer."""
    text = text.strip().lower()
    match = re.search(r"position\s*[:\-]?\s*([a-z\-]+)", text)
    if match and (name := match[1].strip().rstrip(".,;")) in REGIONS:
        return name
    return next((name for name in LONGEST_FIRST if name in text), None)


def letter(text: str) -> str | None:
    """The letter of a choice: alone, in brackets, after a known phrase, or the first capital that stands alone, other
    than I and A, unless it follows a word such as option."""
    text = text.strip()
    if match := re.match(r"^\s*\(?([A-Z])\)?[\s\.\):,;!?]*$", text) or re.search(r"\(([A-Z])\)", text):
        return match[1]
    for pattern in LETTERS:
        if match := re.search(pattern, text, re.IGNORECASE):
            return match[1].upper()
    for match in re.finditer(r"\b([A-Z])\b", text):
        around = text[max(0, match.start() - 6) : match.start() + 6]
        marked = re.search(rf"(option|choice|answer|\(|\)|\.)\s*{match[1]}\b", around, re.IGNORECASE)
        if marked or match[1] not in "IA":
            return match[1]
    return None


def streamed_number(text: str) -> int | None:
    """The number of something said: the first one that is not a time of day; it may be negative."""
    match = re.search(r"-?\d+", re.sub(CLOCK, " ", text.strip()))
    return int(match[0]) if match else None


def streamed_region(text: str) -> str | None:
    text = text.lower()
    match = re.search(r"position\s*:\s*([\w\-]+)", text)
    if match and match[1] in REGIONS:
        return match[1]
    return next((name for name in LONGEST_FIRST if name in text), None)


def streamed_state(text: str) -> str:
    return text.strip().strip("'\"").lower().strip()
