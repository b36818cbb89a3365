// Line charts over the time of the stream, with one line per model, as SVG.

const [WIDTH, HEIGHT, LEFT, BOTTOM, TOP] = [400, 150, 44, 20, 8];
const LONGEST = 60; // seconds shown at once
const NAMES = { mod: "MoD", dense: "dense" };

export const median = (values) => values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)];

export class Chart {
  // `value(frame)`: the value of a frame's row; `format(number)`: a label; `top(values)`: the upper end of the scale.
  constructor(id, { value, format, top = (values) => 1.15 * Math.max(...values), now }) {
    this.figure = document.getElementById(id);
    Object.assign(this, { value, format, top, now });
    this.text = document.createElement("p");
    this.text.className = "chart-now";
    this.svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    this.svg.setAttribute("class", "chart");
    this.svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
    this.svg.setAttribute("preserveAspectRatio", "none");
    this.svg.setAttribute("role", "img");
    this.figure.append(this.text, this.svg);
    this.draw({}, 10);
  }

  draw(lanes, seconds, mark = null) {
    const names = Object.keys(lanes).filter((name) => lanes[name].frames.length);
    const width = this.figure.clientWidth || WIDTH;
    this.svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    const last = Math.max(0, ...names.map((name) => lanes[name].frames.at(-1)[0]));
    const end = Math.max(Math.min(seconds, LONGEST), last);
    const begin = Math.max(0, end - LONGEST);
    const shown = names.map((name) => [name, lanes[name].frames.filter((frame) => frame[0] >= begin)]);
    const high = names.length ? this.top(shown.flatMap(([, frames]) => frames.map(this.value))) || 1 : 1;
    const x = (time) => LEFT + ((width - LEFT - 8) * (time - begin)) / Math.max(1, end - begin);
    const y = (value) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - Math.min(1, value / high));
    const parts = [];
    for (const value of names.length ? [0, high / 2, high] : [0]) {
      parts.push(`<line class="grid" x1="${LEFT}" x2="${width - 8}" y1="${y(value)}" y2="${y(value)}"/>`);
      parts.push(`<text x="${LEFT - 6}" y="${y(value) + 4}" text-anchor="end">${this.format(value)}</text>`);
    }
    for (const time of [begin, (begin + end) / 2, end]) {
      parts.push(`<text x="${x(time)}" y="${HEIGHT - 3}" text-anchor="${time === end ? "end" : "middle"}">${time.toFixed(0)} s</text>`);
    }
    for (const [name, frames] of shown.toReversed()) {
      const points = frames.map((frame) => `${x(frame[0]).toFixed(1)},${y(this.value(frame)).toFixed(1)}`);
      parts.push(`<polyline class="${name}" points="${points.join(" ")}"/>`);
      if (frames.length === 1) parts.push(`<circle class="spoke" cx="${x(frames[0][0])}" cy="${y(this.value(frames[0]))}" r="3"/>`);
    }
    if (mark !== null) parts.push(`<line class="mark" x1="${LEFT}" x2="${width - 8}" y1="${y(mark)}" y2="${y(mark)}"/>`);
    this.svg.innerHTML = parts.join("");
    const said = names.length ? this.now(lanes, names) : "";
    this.text.innerHTML = said;
    this.svg.setAttribute("aria-label", this.text.textContent || "Nothing yet");
  }
}

const of = (lanes, names, tell) => names.map((name) => `<span class="${name}"><b>${NAMES[name]}</b> ${tell(lanes[name].frames)}</span>`).join(" · ");

function compared(lanes, names, tell) {
  if (names.length < 2) return "";
  const change = 100 * (tell(lanes.mod.frames) / tell(lanes.dense.frames) - 1);
  return `, ${Math.abs(change).toFixed(0)} % ${change <= 0 ? "less" : "more"}`;
}

const bytes = (value) => (value >= 1e6 ? `${(value / 1e6).toFixed(1)} MB` : `${Math.round(value / 1e3)} kB`);
const time = (value) => `${value.toFixed(value < 10 ? 1 : 0)} ms`;

export function makeCharts() {
  const held = (frames) => frames.at(-1)[3];
  const spent = (frames) => median(frames.map((frame) => frame[4]));
  return {
    speak: new Chart("chart-speak", {
      value: (frame) => 1 - frame[1],
      format: (value) => `${Math.round(100 * value)} %`,
      top: () => 1,
      now: (lanes, names) => of(lanes, names, (frames) => `${Math.round(100 * (1 - frames.at(-1)[1]))} %`) + " · speaks above the dashed line",
    }),
    bytes: new Chart("chart-bytes", {
      value: (frame) => frame[3],
      format: bytes,
      now: (lanes, names) => of(lanes, names, (frames) => bytes(held(frames))) + compared(lanes, names, held),
    }),
    time: new Chart("chart-time", {
      value: (frame) => frame[4],
      format: time,
      now: (lanes, names) => of(lanes, names, (frames) => time(spent(frames))) + compared(lanes, names, spent) + " (median)",
    }),
  };
}
