// The page's actions: choose, start, stop, ask. While the video plays, the stream on the server is advanced to its time.

import { call, kept, Refused, send } from "./calls.js";
import { makeCharts } from "./charts.js";
import { clock, Log } from "./log.js";
import { Stage } from "./stage.js";

const [SOONEST, LATEST] = [20, 500]; // milliseconds between two calls while a video plays
const TRIES = 5; // calls before an unreachable server is reported
const RULES = {
  trained: {
    option: "As it has learned",
    hint: "The model speaks when P(silence) is below this; higher is more talkative.",
    chart: "Probability of speaking",
  },
  verify: {
    option: "When its last words no longer hold",
    hint: "The model speaks again when a word of its last narration is less probable than this share of the best word there; higher is more talkative.",
    chart: "Doubt in its last words",
  },
};
const $ = (id) => document.getElementById(id);
const sleep = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));

const about = await (await fetch("about.json")).json();
const state = { clip: null, choosing: 0, stream: null, running: null, waiting: 0, over: false, began: 0, lanes: {} };
const stage = new Stage(about.model);
const charts = makeCharts();
const log = new Log((time) => { stage.seek(time); redraw(); });

// ---- messages and buttons

const say = (text) => { if ($("status").textContent !== text) $("status").textContent = text; };

function complain(error) {
  $("problem").hidden = !error;
  $("problem").textContent = error ? (error instanceof Refused ? error.message : `The server cannot be reached. ${error.message}`) : "";
}

function showButtons() {
  const running = Boolean(state.running);
  $("start").disabled = !state.clip || running || state.choosing > 0;
  $("start").textContent = state.stream ? "Start again" : "Start";
  $("stop").disabled = !running;
  $("continue").hidden = !state.stream || running || state.over || state.clip?.camera;
  const asking = Boolean(state.stream) && !state.waiting;
  for (const element of [...$("ask").elements, ...$("suggestions").children]) element.disabled = !asking;
  for (const link of $("downloads").children) {
    if (state.stream) link.href = `download/${state.stream}/${link.dataset.name}`;
    else link.removeAttribute("href");
  }
}

const length = () => state.clip?.seconds || (isFinite(stage.video.duration) && stage.video.duration) || Math.max(30, lastTime());
const lastTime = () => state.lanes.mod?.frames.at(-1)?.[0] ?? 0;

function redraw() {
  stage.frames = state.lanes.mod?.frames ?? [];
  stage.draw();
  log.at(state.clip?.camera && stage.frozen === null ? lastTime() : stage.time, length());
  charts.speak.draw(state.lanes, length(), 1 - (slid("threshold") ?? about.model.rules[$("rule").value]));
  charts.bytes.draw(state.lanes, length());
  charts.time.draw(state.lanes, length());
}

// ---- choosing

async function choose(pressed, kind, value = null, name = "") {
  if (state.running) await stop();
  complain(null);
  say("One moment…");
  state.choosing += 1;
  showButtons();
  try {
    if (kind === "camera") await openCamera();
    show(await call("choose", kind, value, name));
    for (const other of document.querySelectorAll(".choice")) other.setAttribute("aria-pressed", String(other === pressed));
    say(`${state.clip.title}. Press Start.`);
  } catch (error) {
    complain(error);
    say("Choose another video, or try again.");
  } finally {
    state.choosing -= 1;
    showButtons();
  }
}

function show(clip) {
  state.clip = clip;
  state.stream = null;
  state.over = false;
  state.lanes = {};
  kept.set(null);
  if (!clip.camera) stage.play(clip.url);
  $("notice").hidden = !clip.notice;
  $("notice").textContent = clip.notice;
  document.body.classList.toggle("is-silent", Boolean(clip.silent));
  $("talk-title").textContent = clip.silent ? "3. What it cannot say" : "3. Read and ask";
  $("silent").hidden = !clip.silent;
  $("why-silent").textContent = clip.silent ?? "";
  log.clear();
  log.truth(null);
  $("clock").textContent = "";
  $("server").hidden = true;
  redraw();
  showButtons();
}

async function openCamera() {
  if (!navigator.mediaDevices) throw new Refused("The camera is only available if this page is served over https.");
  try {
    await stage.watchCamera();
  } catch (error) {
    const why = { NotAllowedError: "Access to the camera was denied.", NotFoundError: "There is no camera." }[error.name];
    throw new Refused(`${why ?? "The camera cannot be opened."} Allow access in the browser, or choose a video.`);
  }
}

async function upload(file) {
  const limit = about.limits.upload_megabytes;
  if (file.size > limit * 1e6) {
    complain(new Refused(`${file.name} has ${Math.round(file.size / 1e6)} MB. Uploads may have up to ${limit} MB.`));
    return;
  }
  complain(null);
  try {
    const path = await send(file, (percent) => say(`Uploading ${file.name}: ${percent} %`));
    await choose($("drop"), "upload", { path }, file.name);
  } catch (error) {
    complain(error);
  }
}

// ---- watching

// A slider that was not moved leaves the model's own value, which may lie between two of its steps.
const moved = new Set();
const slid = (id) => (moved.has(id) ? Number($(id).value) : null);

const options = () => ({
  keep_ratio: slid("keep-ratio"),
  threshold: slid("threshold"),
  memory: slid("memory"),
  rule: $("rule").value,
  instruction: $("instruction").value,
  compare: $("compare").checked,
});

const known = () => Object.fromEntries(Object.entries(state.lanes).map(([name, { frames, events }]) => [name, [frames.length, events.length]]));

function take(view) {
  const before = JSON.stringify(known());
  for (const [name, { frames, events, from }] of Object.entries(view.lanes)) {
    const lane = (state.lanes[name] ??= { frames: [], events: [] });
    // answers may come in another order than they were asked for: only what is new is added
    if (from[0] <= lane.frames.length) lane.frames.push(...frames.slice(lane.frames.length - from[0]));
    if (from[1] <= lane.events.length) {
      const said = events.slice(lane.events.length - from[1]);
      log.add(name, said);
      lane.events.push(...said);
    }
  }
  log.answering(view.answering);
  state.waiting = view.waiting ?? 0;
  state.over = view.over;
  if (view.server) showServer(view.server);
  if (view.problem) complain(new Refused(`The video ended early: ${view.problem}`));
  if (view.truth) log.truth(view.truth);
  if (JSON.stringify(known()) !== before) redraw();
}

// What the server does with the frames: of those on their way, some may wait, and some be dropped.
function showServer({ waiting, dropped, left_out, keep_ratio }) {
  const ratio = keep_ratio === null ? "" : `The model keeps ${Math.round(100 * keep_ratio)} % of a frame's tokens in its routed layers. `;
  const lost = dropped + left_out ? `${dropped + left_out} were dropped.` : "None were dropped.";
  $("server").hidden = false;
  $("server").textContent = `${ratio}${waiting} ${waiting === 1 ? "frame is" : "frames are"} on the way. ${lost}`;
}

async function start() {
  complain(null);
  const token = (state.running = {});
  Object.assign(state, { stream: null, over: false, lanes: {} });
  stage.unfreeze();
  log.clear($("compare").checked);
  log.truth(null);
  showButtons();
  say("Starting…");
  try {
    if (!state.clip.camera) {
      stage.video.pause();
      stage.video.currentTime = 0;
    } else {
      stage.snapshots = [];
      if (!stage.video.srcObject?.active) await openCamera();
      await stage.video.play();
    }
    const view = await call("begin", state.clip.clip, options());
    if (state.running !== token) return call("stop", view.stream);
    state.stream = view.stream;
    kept.set(view.stream);
    take(view);
    state.began = performance.now();
    await run(token);
  } catch (error) {
    if (state.running === token) finish();
    complain(error);
    say("The stream did not start.");
  }
}

async function run(token) {
  state.running = token;
  showButtons();
  let playing = false;
  let tries = 0;
  while (state.running === token) {
    const asked = performance.now();
    let view;
    try {
      view = await call("advance", state.stream, now(), options(), known(), playing && state.clip.camera ? stage.snapshot(elapsed()) : null);
      tries = 0;
    } catch (error) {
      if (error instanceof Refused || ++tries > TRIES) throw error;
      say("The connection was lost. Trying again…");
      await sleep(500 * tries);
      continue;
    }
    if (state.running !== token) return;
    take(view);
    if (view.over) return finish();
    if (view.waiting) {
      say(`All places are taken. You are number ${view.waiting} in line; the stream will start by itself.`);
      showButtons();
      await sleep(1000);
      continue;
    }
    if (!playing) {
      playing = true;
      state.began = performance.now();
      showButtons();
      say("Watching.");
      if (!state.clip.camera) await stage.video.play().catch(() => say("Press play on the video."));
      continue;
    }
    showClock(view);
    if (state.clip.camera) await sleep(Math.max(20, 1000 / about.model.fps - (performance.now() - asked)));
    else if (stage.video.paused && !stage.video.ended) return pause();
    else await sleep(view.more ? 0 : untilNextFrame());
  }
}

const elapsed = () => (performance.now() - state.began) / 1000;
const now = () => (state.clip.camera ? elapsed() : stage.video.ended ? 1e9 : stage.video.currentTime);

function untilNextFrame() {
  const due = state.lanes.mod.frames.length ? lastTime() + 1 / about.model.fps : 0;
  return Math.min(LATEST, Math.max(SOONEST, 1000 * (due - stage.video.currentTime) + 5));
}

function showClock(view) {
  const behind = Math.min(now(), length()) - view.time;
  const late = behind > 2 ? `, ${behind.toFixed(0)} s behind` : "";
  $("clock").textContent = `${clock(view.time)}${state.clip.camera ? "" : ` of ${clock(length())}`}${late}`;
}

function pause() {
  state.running = null;
  say("Paused. Play the video to continue.");
  showButtons();
}

async function goOn() {
  if (state.running || !state.stream || state.over || state.clip.camera) return;
  try {
    await run({});
  } catch (error) {
    finish();
    complain(error);
  }
}

function finish() {
  state.running = null;
  if (!state.clip?.camera || state.over) stage.video.pause();
  say(state.over ? "The model has watched everything." + (state.clip.silent ? "" : " Click an entry to see that moment, or ask more.") : "Stopped.");
  showButtons();
  redraw();
}

async function stop() {
  const { stream } = state;
  state.running = null;
  stage.video.pause();
  say(state.clip?.silent ? "Stopped." : "Stopped. You can still ask, or start again.");
  showButtons();
  if (!stream) return;
  try {
    take(await call("stop", stream, known()));
    state.over = true;
    showButtons();
  } catch (error) {
    complain(error);
  }
}

async function ask(question) {
  const { stream } = state;
  log.answering({ time: lastTime(), query: question, text: "" });
  try {
    await call("ask", question, stream);
    if (state.stream === stream) take(await call("advance", stream, 0, options(), known(), null));
  } catch (error) {
    log.answering(null);
    complain(error);
  }
}

// ---- setup

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  redraw();
}

function listen() {
  for (const { name, title } of about.examples) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "choice";
    button.textContent = title;
    button.dataset.name = name;
    button.addEventListener("click", () => choose(button, "example", name));
    $("examples").append(button);
  }
  $("scene").addEventListener("click", (event) => choose(event.currentTarget, "scene"));
  $("camera").addEventListener("click", (event) => choose(event.currentTarget, "camera"));
  $("file").addEventListener("change", (event) => {
    if (event.target.files[0]) upload(event.target.files[0]);
    event.target.value = "";
  });
  for (const event of ["dragover", "dragleave", "drop"]) {
    $("drop").addEventListener(event, (happened) => {
      happened.preventDefault();
      $("drop").classList.toggle("over", event === "dragover");
      if (event === "drop" && happened.dataTransfer.files[0]) upload(happened.dataTransfer.files[0]);
    });
  }
  $("start").addEventListener("click", start);
  $("stop").addEventListener("click", stop);
  $("continue").addEventListener("click", () => stage.video.play());
  stage.video.addEventListener("play", () => setTimeout(goOn));
  stage.video.addEventListener("timeupdate", () => log.at(stage.time, length()));
  $("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    const question = $("question").value.trim();
    $("question").value = "";
    if (question) ask(question);
  });
  for (const question of about.model.questions) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = question;
    button.addEventListener("click", () => ask(question));
    $("suggestions").append(button);
  }
  listenToControls();
  $("theme").addEventListener("click", () => setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"));
}

function listenToControls() {
  const { model } = about;
  const tell = {
    "keep-ratio": (value) => `${Math.round(100 * value)} %: ${Math.ceil(Number((value * model.tokens).toFixed(6)))} of ${model.tokens} tokens`,
    threshold: (value) => Number(value).toFixed(3),
    memory: (value) => `${value} frames, ${value / model.fps} s`,
  };
  const set = (id, value) => {
    $(id).value = value;
    $(`${id}-value`).textContent = tell[id](value);
  };
  $("memory").max = model.max_frames;
  set("memory", model.max_frames);
  set("keep-ratio", model.keep_ratio);
  for (const id of Object.keys(tell)) {
    $(id).addEventListener("input", () => {
      moved.add(id);
      $(`${id}-value`).textContent = tell[id]($(id).value);
      redraw();
    });
  }
  const rules = Object.keys(model.rules);
  for (const rule of rules) $("rule").add(new Option(RULES[rule].option, rule));
  for (const element of [$("rule"), ...$("rule").labels]) element.hidden = rules.length < 2;
  const follow = () => {
    const rule = $("rule").value;
    moved.delete("threshold");
    set("threshold", model.rules[rule]);
    $("threshold-hint").textContent = RULES[rule].hint;
    $("chart-speak-title").textContent = RULES[rule].chart;
    redraw();
  };
  $("rule").value = rules[0];
  $("rule").addEventListener("change", follow);
  follow();
  $("instruction").value = model.instruction;
  $("compare").checked = routes();
}

// Whether the model keeps fewer tokens than a dense one.
const routes = () => about.model.routed_layers.length > 0 && about.model.keep_ratio < 1;

function describe() {
  const { model, limits } = about;
  const million = (model.parameters / 1e6).toFixed(1);
  document.title = `${model.name}: a streaming video language model`;
  $("name").textContent = model.name;
  if (routes()) $("intro").append(" Its routed layers process only a few patches of each frame.");
  $("scene").hidden = model.domain !== about.scenes;
  $("limits").textContent = `Uploads may have up to ${limits.upload_megabytes} MB. The model watches up to ${limits.video_seconds / 60} minutes of a video ` +
    `and ${limits.camera_seconds / 60} minutes of a camera. ${limits.running} streams run at once, and ${limits.waiting} more can wait.`;
  $("layers-hint").textContent = `${model.routed_layers.length} of ${model.layers} layers are routed. ` +
    (routes() ? "Bright patches were kept, dark ones were skipped." : "They keep every patch, unless you lower the keep ratio.");

  $("sight").textContent = about.sight.join("\n");
  if (model.server) return describeServer();
  $("about").textContent = `This model has ${million} million parameters and runs on ${model.device === "cpu" ? "the CPU" : "a GPU"}. ` +
    (model.domain ? `It knows only the ${model.domain}, and watches other videos without a word.` : "");
}

// The model runs elsewhere, so what its layers do cannot be seen or set here.
function describeServer() {
  const { model } = about;
  document.body.classList.add("is-remote");
  $("elsewhere").hidden = false;
  $("elsewhere").textContent = "A server runs the model, and sets its keep ratio and its memory. Which patches its layers keep, " +
    "and what a dense model would cost, can be seen where the model itself runs.";
  $("charts-title").textContent = "Decisions";
  $("chart-time-title").textContent = "Time from a frame to its decision";
  $("about").textContent = `The model runs on the server ${model.server}. ` + (model.domain ? `It knows only the ${model.domain}.` : "");
}

// Restore the stream after a reload.
async function restore() {
  const stream = kept.get();
  if (!stream) return false;
  try {
    const view = await call("advance", stream, 0, options(), {}, null);
    show(view.clip);
    state.stream = stream;
    kept.set(stream);
    log.clear(view.compare);
    $("compare").checked = view.compare;
    take(view);
    stage.video.addEventListener("loadedmetadata", () => stage.seek(view.time), { once: true });
    say(state.over ? "The stream is finished." : state.clip.camera ? "The page was reloaded. Start the camera again." : "The page was reloaded. Continue, or start again.");
    showButtons();
    return true;
  } catch {
    kept.set(null);
    return false;
  }
}

listen();
describe();
const wanted = new URLSearchParams(location.search).get("__theme");
const dark = matchMedia("(prefers-color-scheme: dark)");
setTheme(["light", "dark"].includes(wanted) ? wanted : dark.matches ? "dark" : "light");
dark.addEventListener("change", () => setTheme(dark.matches ? "dark" : "light"));
showButtons();
if (!(await restore())) await choose($("examples").querySelector("button"), "example", about.examples[0].name);
document.documentElement.dataset.ready = "true";
