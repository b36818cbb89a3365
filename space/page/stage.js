// The video with the kept patches drawn over it, and the thumbnails of the routed layers.

const DIM = "6,7,11";
const KEPT = "255,190,60";

// The area that the model's frame covers, in pixels of a w x h picture. It is larger than the picture if that is padded.
function modelFrame(w, h, fit) {
  if (fit === "stretch") return { x: 0, y: 0, w, h };
  const side = fit === "crop" ? Math.min(w, h) : Math.max(w, h);
  return { x: (w - side) / 2, y: (h - side) / 2, w: side, h: side };
}

export class Stage {
  constructor(model) {
    this.model = model;
    this.video = document.getElementById("video");
    this.canvas = document.getElementById("kept");
    this.timeline = document.getElementById("timeline");
    this.shade = document.getElementById("show-kept");
    this.snapshots = []; // pictures of a camera: { time, image }
    this.frozen = null; // time of the snapshot on screen
    this.frames = [];
    this.layers = model.routed_layers.map((layer) => this.#thumbnail(layer));
    this.shade.addEventListener("change", () => this.draw());
    for (const event of ["seeked", "loadeddata", "resize"]) this.video.addEventListener(event, () => this.draw());
    window.addEventListener("resize", () => this.draw());
    setInterval(() => this.#playing() && this.draw(), 120);
  }

  #playing() {
    return !document.hidden && !this.video.paused && !this.video.ended;
  }

  #thumbnail(layer) {
    const figure = document.createElement("figure");
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = 160;
    const caption = document.createElement("figcaption");
    caption.textContent = `Layer ${layer}`;
    figure.append(canvas, caption);
    document.getElementById("layers").append(figure);
    return { layer, canvas, caption };
  }

  play(url) {
    this.#reset();
    this.video.srcObject = null;
    this.video.controls = true;
    this.video.src = url;
    this.video.load();
  }

  async watchCamera() {
    const media = await navigator.mediaDevices.getUserMedia({ video: { width: 640, height: 480 }, audio: false });
    this.#reset();
    this.video.removeAttribute("src");
    this.video.controls = false;
    this.video.srcObject = media;
    await this.video.play();
  }

  #reset() {
    this.video.pause();
    this.video.srcObject?.getTracks().forEach((track) => track.stop());
    this.snapshots = [];
    this.frozen = null;
  }

  // A JPEG of the camera's picture, small enough to send twice a second.
  snapshot(time) {
    const scale = Math.min(1, 384 / Math.max(this.video.videoWidth, this.video.videoHeight));
    const canvas = document.createElement("canvas");
    canvas.width = Math.round(this.video.videoWidth * scale);
    canvas.height = Math.round(this.video.videoHeight * scale);
    canvas.getContext("2d").drawImage(this.video, 0, 0, canvas.width, canvas.height);
    this.snapshots.push({ time, image: canvas });
    return canvas.toDataURL("image/jpeg", 0.85);
  }

  get time() {
    return this.frozen ?? this.video.currentTime;
  }

  // Seek the video, or show the camera's picture of that time.
  seek(time) {
    if (this.video.srcObject || this.snapshots.length) {
      this.frozen = time;
      this.draw();
    } else {
      this.video.currentTime = time + 0.01;
    }
  }

  unfreeze() {
    this.frozen = null;
  }

  #frameAt(time) {
    return this.frames.findLast((frame) => frame[0] <= time + 0.02);
  }

  draw() {
    const frozen = this.frozen === null ? null : this.snapshots.findLast((shot) => shot.time <= this.frozen + 0.02);
    const picture = frozen?.image ?? this.video;
    const [w, h] = [picture.videoWidth ?? picture.width, picture.videoHeight ?? picture.height];
    const live = this.video.srcObject && this.frozen === null;
    const frame = live ? this.frames.at(-1) : this.#frameAt(this.time);
    const box = this.canvas.getBoundingClientRect();
    const ratio = window.devicePixelRatio || 1;
    for (const side of ["width", "height"]) {
      const pixels = Math.round(box[side] * ratio);
      if (this.canvas[side] !== pixels) this.canvas[side] = pixels; // setting it is slow, and clears the canvas
    }
    if (!w || !h || !box.width) return this.canvas.getContext("2d").reset();
    this.#drawOver(picture, Boolean(frozen), w, h, frame);
    for (const [index, layer] of this.layers.entries()) this.#drawLayer(layer, picture, w, h, frame?.[2][index]);
  }

  #cells(kept) {
    const skip = this.model.class_token ? 1 : 0;
    return kept.filter((token) => token >= skip).map((token) => token - skip);
  }

  #drawOver(picture, opaque, w, h, frame) {
    const pen = this.canvas.getContext("2d");
    pen.reset();
    const scale = Math.min(this.canvas.width / w, this.canvas.height / h);
    pen.translate((this.canvas.width - w * scale) / 2, (this.canvas.height - h * scale) / 2);
    pen.scale(scale, scale);
    if (opaque) pen.drawImage(picture, 0, 0, w, h);
    if (!frame || !this.shade.checked || !frame[2].length) return;
    pen.beginPath();
    pen.rect(0, 0, w, h);
    pen.clip();
    const [rows, columns] = this.model.grid;
    const share = new Array(rows * columns).fill(0);
    for (const kept of frame[2]) for (const cell of this.#cells(kept)) share[cell] += 1 / frame[2].length;
    if (share.every((part) => part > 0.999)) return; // nothing was skipped
    const area = modelFrame(w, h, this.model.fit);
    const [cw, ch] = [area.w / columns, area.h / rows];
    share.forEach((part, cell) => {
      const [x, y] = [area.x + (cell % columns) * cw, area.y + Math.floor(cell / columns) * ch];
      pen.fillStyle = `rgba(${DIM},${0.5 * (1 - Math.sqrt(part))})`;
      pen.fillRect(x, y, cw, ch);
      if (!part) return;
      pen.strokeStyle = `rgba(${KEPT},${0.35 + 0.65 * part})`;
      pen.lineWidth = 2.5 / scale * (window.devicePixelRatio || 1);
      pen.strokeRect(x + pen.lineWidth, y + pen.lineWidth, cw - 2 * pen.lineWidth, ch - 2 * pen.lineWidth);
    });
  }

  #drawLayer({ layer, canvas, caption }, picture, w, h, kept) {
    const pen = canvas.getContext("2d");
    const side = canvas.width;
    const area = modelFrame(w, h, this.model.fit);
    const [sx, sy] = [side / area.w, side / area.h];
    pen.fillStyle = `rgb(${DIM})`;
    pen.fillRect(0, 0, side, side);
    pen.drawImage(picture, -area.x * sx, -area.y * sy, w * sx, h * sy);
    if (!kept) {
      caption.textContent = `Layer ${layer}`;
      return;
    }
    const [rows, columns] = this.model.grid;
    const cells = new Set(this.#cells(kept));
    pen.fillStyle = `rgba(${DIM},0.78)`;
    for (let cell = 0; cell < rows * columns; cell++) {
      if (cells.has(cell)) continue;
      pen.fillRect(((cell % columns) * side) / columns, (Math.floor(cell / columns) * side) / rows, side / columns, side / rows);
    }
    const whole = this.model.class_token && kept.includes(0) ? " + whole frame" : "";
    caption.textContent = `Layer ${layer}: ${cells.size} of ${rows * columns} patches${whole}`;
  }
}

// Make a group of buttons a single tab stop, with arrow keys to move between them.
export function arrowKeys(container) {
  const items = () => [...container.querySelectorAll("button")];
  container.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const all = items();
    if (!step || !all.length) return;
    event.preventDefault();
    const at = all.indexOf(document.activeElement);
    const next = all[Math.min(all.length - 1, Math.max(0, at + step))];
    for (const item of all) item.tabIndex = item === next ? 0 : -1;
    next.focus();
  });
  return () => {
    const all = items();
    if (all.length && !all.some((item) => item.tabIndex === 0)) all[0].tabIndex = 0;
  };
}
