// The static page. The renderer is the global name Renderer (vendor/): three.js and Spark. World axes are those of the
// scene; a camera of three.js looks along its -z with y up, one of COLMAP along z with y down.
"use strict";

const scene = JSON.parse(document.getElementById("scene").textContent);
const byId = (id) => document.getElementById(id);
const body = document.body;
const VIOLET_GREEN_YELLOW = [[158, 74, 204], [33, 165, 150], [253, 231, 37]]; // The report's, with a lighter violet.
const NEAR = 0.2; // Training units: Gaussians that are nearer were not drawn in training either.
const FLIGHT = 0.7; // Seconds from one camera to the next.
const CLICK = 5; // Pixels: a pointer that moved less was not dragged.

// ---- Loading -------------------------------------------------------------------------------------------------------

function say(state, text) {
  if (body.dataset.state === "error") return; // The first error is the cause of those after it.
  body.dataset.state = state;
  byId("message").textContent = text;
}

function fail(error) {
  console.error(error);
  say("error", `The scene cannot be shown. ${error && error.message ? error.message : error}`);
}

window.addEventListener("error", (event) => fail(event.error ?? event.message));
window.addEventListener("unhandledrejection", (event) => fail(event.reason));

function bytesOf(base64) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(base64);
  return Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
}

/** Text of an element, which is then removed: the page would otherwise hold its data twice. */
function taken(element) {
  const text = element.textContent;
  element.remove();
  return text;
}

async function loadRenderer() {
  if (typeof DecompressionStream === "undefined" || typeof WebAssembly === "undefined") {
    throw new Error("This browser is too old; use a version from 2023 or later.");
  }
  const packed = new Blob([bytesOf(taken(byId("renderer")))]);
  const code = await new Response(packed.stream().pipeThrough(new DecompressionStream("gzip"))).text();
  const script = document.createElement("script");
  script.textContent = `${code}\nwindow.Renderer = Renderer;`;
  document.head.append(script);
}

/** The Gaussians' file: from this page, or from the scripts beside it, which call momentumPart. */
async function loadData() {
  const data = new Uint8Array(scene.bytes);
  let filled = 0;
  const add = (base64) => {
    const part = bytesOf(base64);
    data.set(part, filled);
    filled += part.length;
    say("loading", `Loading ${Math.round((100 * filled) / scene.bytes)} % of ${millions(scene.bytes)} MB ...`);
  };
  for (const element of document.querySelectorAll("script.part")) add(taken(element));
  window.momentumPart = add;
  for (const file of scene.files) {
    await new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.src = file.split("/").map(encodeURIComponent).join("/");
      script.onload = resolve;
      script.onerror = () => reject(new Error(`The file ${file} is missing beside the page.`));
      document.head.append(script);
    }).finally(() => document.head.lastChild.remove());
  }
  if (filled !== scene.bytes) throw new Error(`Found ${filled} of ${scene.bytes} bytes; the page is not complete.`);
  return data;
}

const millions = (count) => (count / 1e6).toFixed(1);

// ---- View ----------------------------------------------------------------------------------------------------------

/** Position, orientation, pinhole and distance to the pivot of what is seen. The horizon stays as it is: views from
 *  images may be tilted, and those straight down have none. */
class View {
  constructor(canvas) {
    const { PerspectiveCamera, Vector3 } = Renderer;
    this.canvas = canvas;
    this.camera = new PerspectiveCamera();
    this.camera.updateProjectionMatrix = () => this.project();
    this.up = new Vector3(...scene.up);
    this.distance = 1;
    this.lens = [4, 3, 3.2, 3.2, 2, 1.5];
  }

  /** Fits the image of the pinhole [width, height, fx, fy, cx, cy] into the canvas. */
  project() {
    const [w, h, fx, fy, cx, cy] = this.lens;
    const { clientWidth: width, clientHeight: height } = this.canvas;
    const k = this.scale();
    const far = scene.overview.radius * 1e4;
    const left = -((cx - w / 2) * k + width / 2) / (fx * k);
    const top = ((cy - h / 2) * k + height / 2) / (fy * k);
    const right = left + width / (fx * k);
    const bottom = top - height / (fy * k);
    const camera = this.camera;
    camera.near = NEAR;
    camera.far = far;
    camera.aspect = width / height;
    camera.fov = (360 / Math.PI) * Math.atan((top - bottom) / 2);
    camera.projectionMatrix.makePerspective(left * NEAR, right * NEAR, top * NEAR, bottom * NEAR, NEAR, far);
    camera.projectionMatrixInverse.copy(camera.projectionMatrix).invert();
  }

  /** Pixels of the canvas per pixel of the lens. */
  scale() {
    return Math.min(this.canvas.clientWidth / this.lens[0], this.canvas.clientHeight / this.lens[1]);
  }

  axis(x, y, z) {
    return new Renderer.Vector3(x, y, z).applyQuaternion(this.camera.quaternion);
  }

  pivot() {
    return this.camera.position.clone().addScaledVector(this.axis(0, 0, -1), this.distance);
  }

  turn(axis, angle) {
    const rotation = new Renderer.Quaternion().setFromAxisAngle(axis, angle);
    const pivot = this.pivot();
    this.camera.position.sub(pivot).applyQuaternion(rotation).add(pivot);
    this.camera.quaternion.premultiply(rotation).normalize();
  }

  orbit(dx, dy) {
    this.turn(this.up, -dx * 0.006);
    const before = this.axis(0, 1, 0).dot(this.up);
    const across = this.axis(1, 0, 0);
    this.turn(across, -dy * 0.006);
    const after = this.axis(0, 1, 0).dot(this.up);
    // Not over the pole: the scene would stand on its head.
    if (after < 0 && after < before) this.turn(across, dy * 0.006);
  }

  pan(dx, dy) {
    const k = this.distance / (this.lens[3] * this.scale());
    this.camera.position.addScaledVector(this.axis(1, 0, 0), -dx * k).addScaledVector(this.axis(0, 1, 0), dy * k);
  }

  zoom(factor) {
    const distance = Math.max(this.distance * factor, scene.overview.radius * 1e-3);
    this.camera.position.addScaledVector(this.axis(0, 0, -1), this.distance - distance);
    this.distance = distance;
  }

  fly(right, up, forward) {
    this.camera.position.add(this.axis(right, up, -forward).multiplyScalar(this.distance));
  }

  pose() {
    const { position, quaternion } = this.camera;
    return { position: position.clone(), quaternion: quaternion.clone(), lens: this.lens, distance: this.distance };
  }

  /** The pose between two others. */
  place(from, to, share) {
    this.camera.position.lerpVectors(from.position, to.position, share);
    this.camera.quaternion.slerpQuaternions(from.quaternion, to.quaternion, share);
    this.lens = from.lens.map((value, i) => value + share * (to.lens[i] - value));
    this.distance = from.distance + share * (to.distance - from.distance);
    this.project();
  }
}

function poseOfCamera(record) {
  const { Matrix4, Quaternion, Vector3 } = Renderer;
  const [a, b, c, d, e, f, g, h, i] = record.rotation;
  // Columns of camera-to-world: COLMAP's right, up (-down) and back (-forward).
  const matrix = new Matrix4().set(a, -d, -g, 0, b, -e, -h, 0, c, -f, -i, 0, 0, 0, 0, 1);
  return {
    position: new Vector3(...record.center),
    quaternion: new Quaternion().setFromRotationMatrix(matrix),
    lens: [...record.size, ...record.pinhole],
    distance: record.focus,
  };
}

function poseLooking(eye, target, up, lens) {
  const { Matrix4, Quaternion } = Renderer;
  const quaternion = new Quaternion().setFromRotationMatrix(new Matrix4().lookAt(eye, target, up));
  return { position: eye, quaternion, lens, distance: eye.distanceTo(target) };
}

// ---- Overlays ------------------------------------------------------------------------------------------------------

function lines(points, colors) {
  const { BufferGeometry, Float32BufferAttribute, LineBasicMaterial, LineSegments } = Renderer;
  const geometry = new BufferGeometry();
  geometry.setAttribute("position", new Float32BufferAttribute(points, 3));
  geometry.setAttribute("color", new Float32BufferAttribute(colors, 3));
  // Gaussians have no depth that lines could be compared with: lines are drawn over them.
  const material = new LineBasicMaterial({ vertexColors: true, transparent: true, depthTest: false });
  const object = new LineSegments(geometry, material);
  object.renderOrder = 10;
  object.frustumCulled = false;
  object.visible = false;
  return object;
}

function frustaOf(cameras) {
  const points = [];
  const colors = [];
  const far = 0.06 * median(cameras.map((record) => record.focus));
  for (const record of cameras) {
    const { position, quaternion, lens: [w, h, fx, fy, cx, cy] } = poseOfCamera(record);
    const corner = (x, y) => new Renderer.Vector3((x - cx) / fx, (cy - y) / fy, -1).multiplyScalar(far)
      .applyQuaternion(quaternion).add(position);
    const corners = [corner(0, 0), corner(w, 0), corner(w, h), corner(0, h)];
    corners.forEach((from, i) => {
      points.push(...position, ...from, ...from, ...corners[(i + 1) % 4]);
      colors.push(...Array(4).fill([1, 0.75, 0.2]).flat());
    });
  }
  return lines(points, colors);
}

function cellsOf(cells) {
  const scores = cells.map((cell) => cell.psnr).filter((psnr) => psnr !== null);
  const [low, high] = [Math.min(...scores), Math.max(...scores)];
  const points = [];
  const colors = [];
  const labels = [];
  for (const cell of cells) {
    const rgb = cell.psnr === null ? [170, 170, 170] : shade(high > low ? (cell.psnr - low) / (high - low) : 0.5);
    const { r, g, b } = new Renderer.Color().setStyle(css(rgb));
    for (let i = 0; i < 8; i++) {
      for (const bit of [1, 2, 4]) {
        if (i & bit) continue;
        points.push(...cell.corners[i], ...cell.corners[i | bit]);
        colors.push(r, g, b, r, g, b);
      }
    }
    const text = cell.psnr === null ? `${cell.block}` : `${cell.block}: ${cell.psnr.toFixed(2)} dB`;
    const middle = [0, 1, 2].map((axis) => cell.corners.reduce((sum, corner) => sum + corner[axis] / 8, 0));
    labels.push(label(text, css(rgb), middle));
  }
  const object = lines(points, colors);
  object.add(...labels);
  if (scores.length) {
    const bar = document.createElement("i");
    byId("legend").append(`PSNR ${low.toFixed(2)}`, bar, `${high.toFixed(2)} dB`);
  }
  return object;
}

/** Text at a place, of the same size from everywhere. */
function label(text, color, place) {
  const canvas = document.createElement("canvas");
  const context = canvas.getContext("2d");
  const font = "600 40px system-ui, sans-serif";
  context.font = font;
  [canvas.width, canvas.height] = [Math.ceil(context.measureText(text).width) + 24, 56];
  context.fillStyle = color;
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.font = font; // Resizing the canvas reset it.
  context.fillStyle = "#000";
  context.fillText(text, 12, 42);
  const map = new Renderer.CanvasTexture(canvas);
  map.colorSpace = Renderer.SRGBColorSpace;
  const sprite = new Renderer.Sprite(new Renderer.SpriteMaterial({ map, depthTest: false, sizeAttenuation: false }));
  const height = 0.03;
  sprite.scale.set((height * canvas.width) / canvas.height, height, 1);
  sprite.position.set(...place);
  sprite.renderOrder = 11;
  return sprite;
}

function shade(share) {
  const at = Math.min(share * 2, 1.999);
  const [from, to] = VIOLET_GREEN_YELLOW.slice(Math.floor(at), Math.floor(at) + 2);
  return from.map((value, i) => Math.round(value + (at % 1) * (to[i] - value)));
}

const css = (rgb) => `rgb(${rgb.join(",")})`;
const median = (values) => [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)];

// ---- The page ------------------------------------------------------------------------------------------------------

class Page {
  constructor(canvas, mesh) {
    const { Color, Scene, SparkRenderer, SRGBColorSpace, WebGLRenderer } = Renderer;
    this.canvas = canvas;
    const context = canvas.getContext("webgl2", { antialias: false, powerPreference: "high-performance" });
    if (!context) throw new Error("This browser offers no WebGL 2: switch hardware acceleration on, or try another.");
    canvas.addEventListener("webglcontextlost", () => fail("The graphics memory is exhausted or was reset; reload."));
    this.renderer = new WebGLRenderer({ canvas, context });
    this.renderer.setPixelRatio(Math.min(window.devicePixelRatio, 2));
    this.renderer.setClearColor(new Color().setRGB(...scene.background, SRGBColorSpace));
    // As in training: a blur of 0.3 pixels that changes no opacity, extents of 3 standard deviations, sorted by depth.
    this.spark = new SparkRenderer({
      renderer: this.renderer, onDirty: () => this.draw(), preBlurAmount: 0.3, blurAmount: 0, sortRadial: false,
      maxStdDev: 3, maxPixelRadius: 2048,
    });
    this.world = new Scene();
    this.frusta = frustaOf(scene.cameras);
    this.cells = scene.cells.length ? cellsOf(scene.cells) : null;
    this.world.add(this.spark, mesh, this.frusta, ...(this.cells ? [this.cells] : []));
    this.view = new View(canvas);
    this.poses = scene.cameras.map(poseOfCamera);
    this.current = 0;
    this.keys = new Set();
    this.flight = null;
    this.frames = 0;
    this.pending = false;
  }

  start() {
    this.fillPanel();
    this.listen();
    new ResizeObserver(() => this.resize()).observe(this.canvas);
    this.resize();
    this.goTo(0, true);
  }

  resize() {
    this.renderer.setSize(this.canvas.clientWidth, this.canvas.clientHeight, false);
    this.view.project();
    this.draw();
  }

  /** Asks for a frame. body.dataset.still is "no" until nothing moves and the order of the Gaussians is up to date. */
  draw() {
    body.dataset.still = "no";
    if (this.pending) return;
    this.pending = true;
    requestAnimationFrame((now) => this.frame(now));
  }

  frame(now) {
    this.pending = false;
    const seconds = this.last === undefined ? 0 : Math.min((now - this.last) / 1000, 0.1);
    this.move(now, seconds);
    this.renderer.render(this.world, this.view.camera);
    this.frames += 1;
    const moving = this.flight !== null || this.keys.size > 0;
    this.last = moving ? now : undefined;
    if (moving) this.draw();
    if (!this.pending && !this.spark.sorting && !this.spark.dirty) body.dataset.still = "yes";
  }

  move(now, seconds) {
    if (this.flight) {
      this.flight.start ??= now;
      const share = Math.min((now - this.flight.start) / (1000 * FLIGHT), 1);
      this.view.place(this.flight.from, this.flight.to, share * share * (3 - 2 * share));
      if (share === 1) this.flight = null;
    }
    const axis = (plus, minus) => (this.keys.has(plus) - this.keys.has(minus)) * seconds;
    if (this.keys.size) this.view.fly(axis("d", "a"), axis("e", "q"), axis("w", "s"));
  }

  flyTo(pose, instant = false) {
    const now = instant || window.matchMedia("(prefers-reduced-motion: reduce)").matches;
    this.flight = now ? null : { from: this.view.pose(), to: pose };
    if (now) this.view.place(pose, pose, 1);
    this.draw();
  }

  goTo(index, instant = false) {
    this.current = (index + this.poses.length) % this.poses.length;
    for (const item of byId("cameras").querySelectorAll("button")) {
      item.setAttribute("aria-current", Number(item.dataset.index) === this.current);
    }
    byId("cameras").querySelector("[aria-current=true]")?.scrollIntoView({ block: "nearest" });
    this.flyTo(this.poses[this.current], instant);
  }

  overview() {
    const { Vector3 } = Renderer;
    const eye = new Vector3(...scene.overview.eye);
    this.flyTo(poseLooking(eye, new Vector3(...scene.overview.target), this.view.up, [4, 3, 3.2, 3.2, 2, 1.5]));
  }

  /** The same direction with a level horizon. */
  level() {
    const { camera, up, distance, lens } = this.view;
    const ahead = this.view.axis(0, 0, -1);
    if (Math.abs(ahead.dot(up)) > 0.9999) return; // Straight down there is no horizon.
    this.flyTo({ ...poseLooking(camera.position.clone(), this.view.pivot(), up, lens), distance });
  }

  show(name, shown = !this[name]?.visible) {
    if (!this[name]) return;
    this[name].visible = shown;
    byId(name).checked = shown;
    if (name === "cells") byId("legend").hidden = !shown || !byId("legend").childNodes.length;
    this.draw();
  }

  fillPanel() {
    const blocks = new Set(scene.cells.map((cell) => cell.block)).size;
    const cells = blocks ? `, ${blocks} cells` : "";
    byId("facts").textContent =
      `${scene.gaussians.toLocaleString("en")} Gaussians, ${scene.cameras.length} cameras${cells}`;
    byId("cells-label").hidden = !this.cells;
    scene.cameras.forEach((record, index) => {
      const button = document.createElement("button");
      button.textContent = record.name;
      button.dataset.index = index;
      const item = document.createElement("li");
      item.append(button);
      byId("cameras").append(item);
    });
    if (window.innerWidth < 640) byId("panel").open = false;
  }

  listen() {
    byId("cameras").addEventListener("click", (event) => {
      if (event.target.dataset.index !== undefined) this.goTo(Number(event.target.dataset.index));
    });
    byId("filter").addEventListener("input", (event) => {
      const wanted = event.target.value.toLowerCase();
      for (const item of byId("cameras").children) item.hidden = !item.textContent.toLowerCase().includes(wanted);
    });
    byId("overview").addEventListener("click", () => this.overview());
    byId("level").addEventListener("click", () => this.level());
    for (const name of ["frusta", "cells"]) {
      byId(name).addEventListener("change", (event) => this.show(name, event.target.checked));
    }
    this.listenToKeys();
    this.listenToPointers();
  }

  listenToKeys() {
    const once = {
      n: () => this.goTo(this.current + 1), p: () => this.goTo(this.current - 1), o: () => this.overview(),
      l: () => this.level(), f: () => this.show("frusta"), c: () => this.show("cells"),
      h: () => body.classList.toggle("bare"),
    };
    window.addEventListener("keydown", (event) => {
      const key = event.key.toLowerCase();
      if (event.target.type === "search" || event.ctrlKey || event.metaKey || event.altKey) return;
      if ("wasdqe".includes(key)) {
        this.flight = null;
        this.keys.add(key);
        this.draw();
      } else if (!event.repeat) once[key]?.();
    });
    window.addEventListener("keyup", (event) => this.keys.delete(event.key.toLowerCase()));
    window.addEventListener("blur", () => this.keys.clear());
  }

  listenToPointers() {
    const { canvas, view } = this;
    const held = new Map(); // Pointer -> where it is.
    let moved = 0;
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      held.set(event.pointerId, [event.clientX, event.clientY]);
      if (held.size === 1) moved = 0;
    });
    canvas.addEventListener("pointermove", (event) => {
      const before = held.get(event.pointerId);
      if (!before) return;
      const now = [event.clientX, event.clientY];
      const [dx, dy] = [now[0] - before[0], now[1] - before[1]];
      moved += Math.hypot(dx, dy);
      if (moved < CLICK && held.size === 1) return;
      held.set(event.pointerId, now);
      this.flight = null;
      if (held.size === 2) {
        const [other] = [...held].filter(([id]) => id !== event.pointerId).map(([, place]) => place);
        const apart = (place) => Math.max(Math.hypot(place[0] - other[0], place[1] - other[1]), 1);
        view.pan(dx / 2, dy / 2);
        view.zoom(apart(before) / apart(now));
      } else if (event.buttons & 6 || event.shiftKey) view.pan(dx, dy);
      else view.orbit(dx, dy);
      this.draw();
    });
    for (const name of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(name, (event) => {
        if (held.delete(event.pointerId) && name === "pointerup" && moved < CLICK) this.pick(event);
      });
    }
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.flight = null;
      const lines = event.deltaMode === 1 ? 16 : 1; // Firefox may count in lines.
      view.zoom(Math.exp(Math.max(-1, Math.min(1, event.deltaY * lines * 0.0015))));
      this.draw();
    }, { passive: false });
  }

  /** Goes to the camera that was clicked on, if cameras are shown. */
  pick(event) {
    if (!this.frusta.visible) return;
    const { clientWidth: width, clientHeight: height } = this.canvas;
    let best = [12, null];
    this.poses.forEach((pose, index) => {
      const at = pose.position.clone().project(this.view.camera);
      const away = Math.hypot(((at.x + 1) / 2) * width - event.clientX, ((1 - at.y) / 2) * height - event.clientY);
      if (at.z < 1 && away < best[0]) best = [away, index];
    });
    if (best[1] !== null) this.goTo(best[1]);
  }
}

(async () => {
  const probe = document.createElement("canvas").getContext("webgl2");
  if (!probe) throw new Error("This browser offers no WebGL 2: switch hardware acceleration on, or try another.");
  probe.getExtension("WEBGL_lose_context")?.loseContext();
  await loadRenderer();
  const mesh = new Renderer.SplatMesh({ fileBytes: await loadData(), fileType: "spz", extSplats: true });
  say("loading", `Decoding ${scene.gaussians.toLocaleString("en")} Gaussians ...`);
  await mesh.initialized;
  window.momentumPage = new Page(byId("view"), mesh);
  window.momentumPage.start();
  say("ready", "");
})().catch(fail);
