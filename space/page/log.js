// The events, as a list and as marks on the timeline. A click on an entry seeks to its time.

import { arrowKeys } from "./stage.js";

export const clock = (seconds) => {
  const minutes = Math.floor(seconds / 60);
  return `${minutes}:${(seconds - 60 * minutes).toFixed(1).padStart(4, "0")}`;
};

// Seconds that a subtitle stays.
const readingTime = (text) => Math.max(4, text.length / 15);

export class Log {
  constructor(seek) {
    this.seek = seek;
    this.list = document.getElementById("log");
    this.timeline = document.getElementById("timeline");
    this.subtitle = document.getElementById("subtitle");
    this.tidyList = arrowKeys(this.list);
    this.tidyTimeline = arrowKeys(this.timeline);
    this.clear();
  }

  clear(compare = false) {
    this.entries = new Map();
    this.compare = compare;
    this.pending = null;
    this.list.replaceChildren();
    this.played = document.createElement("div");
    this.played.className = "played";
    this.timeline.replaceChildren(this.played);
    this.subtitle.textContent = "\u00a0";
  }

  // Add events of a model. If both models say the same at the same time, it is one entry.
  add(lane, events) {
    if (!events.length) return;
    const follow = this.list.scrollHeight - this.list.scrollTop - this.list.clientHeight < 60;
    for (const event of events) {
      const key = `${event.time}|${event.kind}|${event.query}|${event.text}|${this.#count(lane, event)}`;
      const entry = this.entries.get(key) ?? this.#enter(key, event);
      entry.lanes.add(lane);
      this.#label(entry);
    }
    this.tidyList();
    this.tidyTimeline();
    if (follow) this.list.scrollTop = this.list.scrollHeight;
  }

  // The number of equal entries of this lane: a question may be asked twice at the same time.
  #count(lane, event) {
    return [...this.entries.values()].filter(
      ({ event: other, lanes }) => lanes.has(lane) && other.time === event.time && other.text === event.text && other.query === event.query
    ).length;
  }

  #enter(key, event) {
    const item = document.createElement("li");
    const button = this.#button(event);
    const badge = document.createElement("span");
    button.append(badge);
    item.append(button);
    const mark = document.createElement("button");
    mark.type = "button";
    mark.addEventListener("click", () => this.seek(event.time));
    const entry = { event, item, button, badge, mark, lanes: new Set() };
    const later = [...this.entries.values()].find((other) => other.event.time > event.time);
    this.list.insertBefore(item, later?.item ?? null);
    this.timeline.insertBefore(mark, later?.mark ?? null);
    button.tabIndex = mark.tabIndex = -1;
    this.entries = new Map([...this.entries, [key, entry]].sort(([, a], [, b]) => a.event.time - b.event.time));
    return entry;
  }

  #button({ time, kind, text, query }) {
    const button = document.createElement("button");
    button.type = "button";
    const when = document.createElement("time");
    when.textContent = clock(time);
    const words = document.createElement("span");
    if (kind === "answer") {
      const asked = document.createElement("span");
      asked.className = "asked";
      asked.textContent = query;
      words.append(asked);
    }
    words.append(text);
    button.append(when, words);
    button.addEventListener("click", () => this.seek(time));
    return button;
  }

  #label({ event, item, badge, mark, lanes }) {
    const both = lanes.size > 1;
    const lane = both ? "both" : [...lanes][0];
    item.className = event.kind;
    badge.className = `lane ${lane}`;
    badge.textContent = { both: "both", mod: "MoD", dense: "dense" }[lane];
    badge.hidden = !this.compare;
    mark.className = event.kind === "answer" ? "answer" : lane === "dense" ? "dense" : "";
    mark.setAttribute("aria-label", `${clock(event.time)} ${event.text}`);
    mark.title = `${clock(event.time)}  ${event.text}`;
  }

  // Show an answer that is being generated.
  answering(answer) {
    this.pending?.remove();
    this.pending = null;
    if (!answer) return;
    this.pending = document.createElement("li");
    this.pending.className = "answer";
    const button = this.#button({ ...answer, kind: "answer", text: answer.text || "…" });
    button.disabled = true;
    this.pending.append(button);
    this.list.append(this.pending);
  }

  // Move the timeline of `seconds` to `time`, and show what was said there as the subtitle.
  at(time, seconds) {
    this.played.style.width = `${Math.min(100, (100 * time) / seconds)}%`;
    const entries = [...this.entries.values()];
    const now = entries.findLast(({ event, lanes }) => event.time <= time + 0.02 && lanes.has("mod"));
    for (const entry of entries) {
      entry.mark.style.left = `${Math.min(100, (100 * entry.event.time) / seconds)}%`;
      for (const element of [entry.mark, entry.button]) element.setAttribute("aria-current", String(entry === now));
    }
    const shown = now && time - now.event.time < readingTime(now.event.text) ? now.event : null;
    const text = shown?.text || "\u00a0";
    this.subtitle.textContent = text;
    this.subtitle.className = `subtitle speaks ${shown?.kind ?? ""} ${text.length > 80 ? "long" : ""}`;
  }

  // Show the ground truth of a scene, and the score of the model.
  truth(judged) {
    const box = document.getElementById("truth");
    box.hidden = !judged;
    if (!judged) return;
    const right = judged.filter(({ verdict }) => verdict === "right").length;
    const total = judged.filter(({ verdict }) => verdict !== "wrong").length;
    const wrong = judged.length - total;
    document.getElementById("score").textContent =
      `${right} of ${total} narrated with the right words at the right time` + (wrong ? `, and ${wrong} wrong.` : ".");
    const words = { right: "right", late: "wrong time", missed: "missed", wrong: "wrong" };
    box.querySelector("ol").replaceChildren(
      ...judged.map(({ time, text, verdict }) => {
        const row = document.createElement("li");
        for (const [name, content] of [["", clock(time)], ["", text], [verdict, words[verdict]]]) {
          const cell = document.createElement("span");
          cell.className = name;
          cell.textContent = content;
          row.append(cell);
        }
        return row;
      })
    );
  }
}
