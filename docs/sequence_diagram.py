"""Draws Mermaid's sequence diagrams as SVG when the site is built, so that pages fetch and run no script for them.

Of Mermaid's language it knows `participant A as name`, `A->>B: text`, `A-->>B: text`, `Note over A,B: text`, and
`loop`, `opt` and `end`. Anything else is an error.
"""

import re
from dataclasses import dataclass, field
from html import escape

CHARACTER, LINE, MARGIN, BOX = 6.9, 34, 16, 30  # pixels: of text of 13 pixels, between lines, and heights
PARTICIPANT = re.compile(r"participant (\w+)(?: as (.+))?")
MESSAGE = re.compile(r"(\w+)(--?)>>(\w+): (.+)")
NOTE = re.compile(r"Note over ([\w,]+): (.+)")
BLOCK = re.compile(r"(loop|opt) (.+)")
STYLE = """<style>.sequence text{font:13px var(--md-text-font-family,sans-serif);fill:var(--md-default-fg-color,#222)}
.sequence line,.sequence rect{stroke:var(--md-default-fg-color--light,#777);fill:none}
.sequence .head,.sequence .note{fill:var(--md-code-bg-color,#f5f5f5)}.sequence .back{stroke-dasharray:4 3}
.sequence polyline{fill:none;stroke:var(--md-default-fg-color--light,#777)}.sequence .name{font-weight:600}</style>"""


@dataclass
class Drawing:
    """The diagram so far, downwards: `y` is where it has come to."""

    names: dict[str, str] = field(default_factory=dict)
    gap: float = 0.0
    y: float = MARGIN + BOX
    parts: list[str] = field(default_factory=list)
    open: list[tuple[float, str, str]] = field(default_factory=list)  # blocks: where they begin, kind and title

    def x(self, name: str) -> float:
        return 80 + self.gap * list(self.names).index(name)

    @property
    def width(self) -> float:
        return 160 + self.gap * (len(self.names) - 1)

    def text(self, x: float, y: float, text: str, kind: str = "", anchor: str = "middle") -> None:
        self.parts.append(f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" class="{kind}">{escape(text)}</text>')

    def message(self, sender: str, is_back: bool, receiver: str, text: str) -> None:
        self.y += LINE
        start, end = self.x(sender), self.x(receiver)
        back = 7 if end > start else -7
        self.text((start + end) / 2, self.y - 6, text)
        kind = "back" if is_back else ""
        self.parts.append(f'<line x1="{start:g}" x2="{end:g}" y1="{self.y:g}" y2="{self.y:g}" class="{kind}"/>')
        points = f"{end - back:g},{self.y - 4:g} {end:g},{self.y:g} {end - back:g},{self.y + 4:g}"
        self.parts.append(f'<polyline points="{points}"/>')

    def note(self, over: list[str], text: str) -> None:
        middle = sum(map(self.x, over)) / len(over)
        width = max(CHARACTER * len(text) + 2 * MARGIN, abs(self.x(over[-1]) - self.x(over[0])) + 80)
        self.box(middle - width / 2, self.y + 12, width, BOX, "note")
        self.text(middle, self.y + 12 + BOX / 2 + 5, text)
        self.y += BOX + 14

    def box(self, x: float, y: float, width: float, height: float, kind: str) -> None:
        self.parts.append(f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="4" class="{kind}"/>')

    def begin(self, kind: str, title: str) -> None:
        self.open.append((self.y + 12, kind, title))
        self.y += 26

    def end(self) -> None:
        top, kind, title = self.open.pop()
        inset = 12 + 12 * len(self.open)
        self.y += 14
        self.box(inset, top, self.width - 2 * inset, self.y - top, "back")
        self.text(inset + 8, top + 17, f"{kind}: {title}", "name", "start")


def draw(source: str) -> str:
    """The SVG of a diagram. Raises `ValueError` for a line that is not known."""
    lines = [line.strip() for line in source.splitlines() if line.strip()]
    if not lines or lines[0] != "sequenceDiagram":
        raise ValueError(f"only sequence diagrams can be drawn, got {lines[:1]}")
    drawing = Drawing()
    for line in lines[1:]:
        if match := PARTICIPANT.fullmatch(line):
            drawing.names[match[1]] = match[2] or match[1]
        elif match := MESSAGE.fullmatch(line):
            drawing.gap = max(drawing.gap, CHARACTER * len(match[4]) + 2 * MARGIN)
    for line in lines[1:]:
        if match := MESSAGE.fullmatch(line):
            drawing.message(match[1], match[2] == "--", match[3], match[4])
        elif match := NOTE.fullmatch(line):
            drawing.note(match[1].split(","), match[2])
        elif match := BLOCK.fullmatch(line):
            drawing.begin(*match.groups())
        elif line == "end" and drawing.open:
            drawing.end()
        elif not PARTICIPANT.fullmatch(line):
            raise ValueError(f"not known in sequence diagrams: {line}")
    return finish(drawing, source)


def finish(drawing: Drawing, source: str) -> str:
    height = drawing.y + MARGIN
    inside, drawing.parts = drawing.parts, []
    for name, title in drawing.names.items():
        x, width = drawing.x(name), CHARACTER * len(title) + 2 * MARGIN
        drawing.parts.append(f'<line x1="{x:g}" x2="{x:g}" y1="{MARGIN + BOX}" y2="{height:g}"/>')
        drawing.box(x - width / 2, MARGIN, width, BOX, "head")
        drawing.text(x, MARGIN + BOX / 2 + 5, title, "name")
    return (
        f'<svg class="sequence" role="img" viewBox="0 0 {drawing.width:g} {height:g}" '
        f'style="width:{drawing.width:g}px;max-width:100%" xmlns="http://www.w3.org/2000/svg">{STYLE}'
        f"<title>{escape(source)}</title>{''.join(drawing.parts + inside)}</svg>"
    )


def as_html(source, language, css_class, options, md, **kwargs) -> str:
    """For `pymdownx.superfences`."""
    return f"<p>{draw(source)}</p>"


def on_config(config):
    """mkdocs calls this before it builds the site."""
    fence = {"name": "mermaid", "class": "sequence", "format": as_html}
    config["mdx_configs"].setdefault("pymdownx.superfences", {})["custom_fences"] = [fence]
    return config
