// One case after the other: shown, timed from when its pixels are on the screen, answered, saved.

import { $, Problem, ask, askJson, clock, element, show, told } from "./common.js";
import { decodeNpy } from "./image.js";
import { Queue } from "./queue.js";
import { KEYS, Viewer, link, tools } from "./viewer.js";

const IDLE_MS = 30_000, AHEAD = 2, KEPT = 8, MAP = "medray-keys";
const NAMES = { invert: "Invert", flipX: "Flip left and right", flipY: "Flip up and down", left: "The left one", right: "The right one" };
const MODES = {
  rating: "You see one image at a time. Say how sure you are that it is real or synthetic: five points.",
  feedback: "This is training: you see one image at a time, and after each answer you are told what it is. Answers stay as they are.",
  "2afc": "You see two images. One is real, the other synthetic: say which one is synthetic.",
};

export class Reading {
  constructor(session) {
    Object.assign(this, { study: session.study, csrf: session.csrf, reader: session.reader, sitting: session.sitting, items: [], at: 0, images: new Map(), truthShown: false, offered: false, current: null });
    this.paired = this.study.mode === "2afc";
    this.keys = { ...KEYS, left: "f", right: "j", ...stored(MAP) };
    this.queue = new Queue(this.study.id, session.reader.name, this.csrf, {
      told: (state) => this.saved(state), stored: (saved, entry) => this.onSaved(saved, entry), refused: (entry, problem) => this.onRefused(entry, problem),
    });
    this.queue.known = (item) => this.items.find((one) => one.item === item)?.answer?.id;
    this.build();
  }

  post(path, json) { return ask(`v1/studies/${this.study.id}/${path}`, { method: "POST", json, headers: { "x-csrf-token": this.csrf }, withKey: false }); }

  // --- the page ------------------------------------------------------------------------------

  build() {
    const labels = this.paired ? ["Left image", "Right image"] : ["Image"];
    this.viewers = labels.map((label) => new Viewer(element("canvas", { tabIndex: 0 }), `${label}: drag for window and level, arrow keys too`));
    link(this.viewers);
    const stages = this.viewers.map((viewer) => element("div", { className: "stage" }, viewer.canvas));
    $("#images").replaceChildren(...stages);
    $("#images").className = this.paired ? "pair" : "";
    this.bar = tools($("#tools"), () => this.viewers);
    this.viewers[0].changed = this.bar.refresh;
    $("#points").hidden = this.paired;
    $("#sides").hidden = !this.paired;
    $("#labels").hidden = !this.study.classes.length;
    $("#label-choices").replaceChildren(...this.study.classes.map((name) => element("label", {}, element("input", { type: "radio", name: "label", value: name }), name)));
    $("#greeting").textContent = `${this.study.name} - ${this.reader.name}`;
    $("#about-mode").replaceChildren(element("p", {}, MODES[this.study.mode]));
    this.showKeys();
    for (const kind of ["pointermove", "pointerdown", "keydown", "wheel", "touchstart"]) window.addEventListener(kind, () => this.moved(), { passive: true });
    document.addEventListener("visibilitychange", () => { if (document.hidden && this.current) this.current.hidden = true; });
    document.addEventListener("keydown", (event) => this.onKey(event));
    $("#begin").addEventListener("click", told(() => this.begin()));
    $("#answer").addEventListener("submit", told(() => this.save()));
    $("#back").addEventListener("click", told(() => this.back()));
    $("#pause").addEventListener("click", () => this.rest("You may stop here. Everything is saved; the same link brings you back.", true));
    $("#finish").addEventListener("click", told(() => this.finish()));
    $("#review").addEventListener("click", told(() => this.go(this.items.length - 1)));
    $("#break-end").addEventListener("click", () => $("#break").close());
    $("#break").addEventListener("close", () => this.resume());
    $("#break").addEventListener("cancel", (event) => { if (this.restUntil > Date.now()) event.preventDefault(); });
    $("#keys").addEventListener("click", () => this.editKeys());
    $("#key-map").addEventListener("close", () => this.keysEdited());
  }

  saved({ waiting, savedAt, error }) {
    const kept = waiting ? `${waiting} answer${waiting > 1 ? "s" : ""} kept in this browser` : "";
    if (error && error.status === 401) { show(new Problem(401, { detail: "Your session has ended: open your link again. " + kept })); }
    $("#saved").className = error ? "flag" : "soft";
    $("#saved").textContent = error ? `Not saved yet (${error.status === 0 ? "no network" : error.message}): ${kept}` : waiting ? "Saving..." : savedAt ? `Saved ${clock(savedAt)}` : "";
  }

  onSaved(saved, entry) {
    const item = this.items.find((one) => one.item === entry.answer.item);
    if (item) item.answer = saved.answer;
    this.sitting = saved.sitting;
    if (saved.truth && this.current && this.current.item.item === entry.answer.item) this.tell(saved.truth);
  }

  async onRefused(entry, problem) {
    if (problem.code === "answered") {
      await this.load();
      $("#saved").textContent = "Answered already in another tab: that answer stands.";
      return;
    }
    show(problem);
  }

  // --- going through the cases -----------------------------------------------------------------

  async load() {
    const { items } = await askJson(`v1/studies/${this.study.id}/items`, { withKey: false });
    this.items = items;
  }

  // Answered here, whether it is saved yet or still on its way.
  done(item) { return Boolean(item.answer) || this.queue.waitsFor(item.item); }

  open(from) {
    const after = this.items.findIndex((item, n) => n >= from && !this.done(item));
    return after >= 0 ? after : this.items.findIndex((item) => !this.done(item));
  }

  async start() {
    await this.load();
    $("#reader").hidden = false;
    $("#status").textContent = "";
    if (this.reader.finished) { this.panel("finished"); return; }
    this.panel("welcome");
    const left = this.items.filter((item) => !this.done(item)).length;
    $("#begin").textContent = left === this.items.length ? "Begin" : `Go on: ${left} of ${this.items.length} left`;
    $("#begin").focus();
    this.queue.flush();
  }

  panel(name) { for (const other of ["welcome", "case", "done", "finished"]) $(`#${other}`).hidden = other !== name; }

  async begin() {
    await this.go(this.open(0));
  }

  async go(at) {
    if (at < 0) return this.complete();
    this.panel("case");
    this.at = at;
    this.current = null;
    $("#answer").setAttribute("aria-busy", "true");
    const item = this.items[at];
    this.fill(item);
    $("#progress").textContent = `Case ${at + 1} of ${this.items.length}`;
    let pixels;
    try {
      pixels = await this.pixels(item);
    } catch (error) {
      if (error.code === "rest_due") return this.rest(error.message, false, error.retryAfter);
      if (error.status === 0) return this.later(at, error);
      throw error;
    }
    if (this.at !== at) return;
    await Promise.all(this.viewers.map((viewer, n) => viewer.show(pixels[n])));
    // Keys mean the image again, whatever was pressed last.
    if (!document.querySelector("dialog[open]")) this.viewers[0].canvas.focus({ preventScroll: true });
    this.current = { item, since: performance.now(), moved: performance.now(), hidden: document.hidden, idle: false };
    $("#answer").setAttribute("aria-busy", "false");
    this.ahead();
    this.offer();
  }

  // The network is away and the next case is not here yet.
  later(at, error) {
    $("#saved").textContent = "Waiting for the network...";
    setTimeout(() => { if (this.at === at && !this.current) told(() => this.go(at))(); }, 2000);
    this.queue.told({ waiting: this.queue.entries().length, savedAt: this.queue.savedAt, error });
  }

  pixels(item) {
    if (!this.images.has(item.item)) {
      const sides = [...Array(item.images).keys()].map(async (side) => decodeNpy(await (await ask(`v1/studies/${this.study.id}/items/${item.item}/images/${side}`, { withKey: false })).arrayBuffer()));
      const made = Promise.all(sides);
      this.images.set(item.item, made);
      made.catch(() => this.images.delete(item.item));
      for (const old of [...this.images.keys()].slice(0, -KEPT)) this.images.delete(old);
    }
    return this.images.get(item.item);
  }

  ahead() {
    for (let n = 0, at = this.at; n < AHEAD; n++) {
      at = this.items.findIndex((item, number) => number > at && !this.done(item));
      if (at < 0) return;
      this.pixels(this.items[at]).catch(() => {});
    }
  }

  fill(item) {
    const form = $("#answer"), answer = item.answer;
    form.reset();
    this.truthShown = false;
    $("#truth").textContent = "";
    $("#lack").hidden = true;
    for (const name of ["score", "choice", "label"]) {
      const value = answer && answer[name];
      const found = value === null || value === undefined ? null : form.querySelector(`input[name="${name}"][value="${CSS.escape(String(value))}"]`);
      if (found) found.checked = true;
    }
    $("#save").firstChild.textContent = answer && this.study.mode !== "feedback" ? "Save the change " : "Save and next ";
    $("#back").disabled = this.study.mode === "feedback" || this.at === 0;
    this.locked(false);
  }

  locked(yes) { for (const input of $("#answer").querySelectorAll("input")) input.disabled = yes; }

  // --- answering ---------------------------------------------------------------------------------

  moved() {
    const now = performance.now();
    if (!this.current) return;
    if (now - this.current.moved > IDLE_MS) this.current.idle = true;
    this.current.moved = now;
  }

  async save() {
    if (this.truthShown) return this.go(this.open(this.at + 1));
    if (!this.current) return;
    const form = new FormData($("#answer")), { item, since } = this.current;
    const lacks = [];
    if (!this.paired && !form.get("score")) lacks.push("real or synthetic, 1 to 5");
    if (this.paired && !form.get("choice")) lacks.push("which one is synthetic");
    if (this.study.classes.length && !form.get("label")) lacks.push("what it shows");
    $("#lack").hidden = !lacks.length;
    $("#lack").textContent = `Not saved, because this is missing: ${lacks.join("; ")}.`;
    if (lacks.length) return;
    this.moved();
    const answer = { item: item.item, seconds: (performance.now() - since) / 1000, hidden: this.current.hidden, idle: this.current.idle };
    if (form.get("label")) answer.label = form.get("label");
    if (this.paired) answer.choice = form.get("choice"); else answer.score = Number(form.get("score"));
    const waits = this.queue.waitsFor(item.item);
    if (item.answer && !waits) {
      if (item.answer.score === (answer.score ?? null) && item.answer.choice === (answer.choice ?? null) && item.answer.label === (answer.label ?? null)) return this.go(this.open(this.at + 1));
      answer.corrects = item.answer.id;
    } else if (waits) answer.correctsOwn = true;
    if (this.study.mode === "feedback") { this.locked(true); await this.queue.add(answer); return; }
    this.queue.add(answer);
    await this.go(this.open(this.at + 1));
  }

  tell(truth) {
    const said = new FormData($("#answer")).get("score") ?? $("#answer").querySelector("input[name=score]:checked")?.value;
    const right = (Number(said) > 3) === truth.synthetic;
    $("#truth").textContent = `${right ? "\u2713" : "\u2717"} This image is ${truth.synthetic ? "synthetic" : "real"}${truth.label ? `, ${truth.label}` : ""}.`;
    $("#save").firstChild.textContent = "Next ";
    this.truthShown = true;
    this.current = null;
    $("#save").focus();
  }

  async back() {
    if (this.study.mode !== "feedback" && this.at > 0) await this.go(this.at - 1);
  }

  onKey(event) {
    if ($("#case").hidden || document.querySelector("dialog[open]")) return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key, control = event.target.closest("select, input[type=text], input[type=password], button, a");
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (/^[1-5]$/.test(key) && !this.paired && !this.truthShown && !(control && control.matches("select, input"))) return this.mark("score", key, event);
    if (this.paired && (key === this.keys.left || key === this.keys.right)) return this.mark("choice", key === this.keys.left ? "left" : "right", event);
    if (key === "Enter" && !control) { event.preventDefault(); $("#answer").requestSubmit(); return; }
    if (control && (key === " " || key.startsWith("Arrow"))) return;
    if (event.target.matches("input[type=radio]") && (key.startsWith("Arrow") || key === " ")) return;
    this.viewers[0].key(event, this.keys);
  }

  mark(name, value, event) {
    const found = $("#answer").querySelector(`input[name="${name}"][value="${value}"]`);
    if (found.disabled) return;
    found.checked = true;
    $("#lack").hidden = true;
    event.preventDefault();
  }

  // --- pauses ----------------------------------------------------------------------------------------

  offer() {
    if (this.sitting.offer_break && !this.offered) {
      this.offered = true;
      this.rest(`You have read ${this.sitting.images} images in this sitting. A break keeps your eye sharp; at ${this.sitting.most} one is due.`, true);
    }
  }

  rest(text, may, seconds = 0) {
    this.restUntil = may ? 0 : Date.now() + 1000 * seconds;
    $("#break-text").textContent = may ? text : `${text}: a rest is due until ${clock(new Date(this.restUntil))}. Everything is saved; you may close this page.`;
    $("#break-end").disabled = !may;
    if (!may) setTimeout(() => { $("#break-end").disabled = false; this.restUntil = 0; }, 1000 * seconds);
    if (!$("#break").open) $("#break").showModal();
    this.post("events", { kind: "pause" }).catch(() => {});
    if (this.current) this.current.paused = performance.now();
  }

  resume() {
    this.offered = false;
    this.sitting = { ...this.sitting, offer_break: false };
    this.post("events", { kind: "resume" }).catch(() => {});
    if (this.current && this.current.paused) {
      // A pause is no time of reading.
      this.current.since += performance.now() - this.current.paused;
      this.current.moved = performance.now();
      this.current.paused = 0;
    } else if (!this.current && !$("#case").hidden && !this.truthShown) told(() => this.go(this.at))();
  }

  // --- the end ----------------------------------------------------------------------------------------

  async complete() {
    await this.queue.flush();
    this.panel("done");
    const waiting = this.queue.entries().length;
    const { not_ready } = waiting ? { not_ready: [`${waiting} answers are still in this browser: they are sent when the network is back`] } : await askJson("v1/studies/session", { withKey: false });
    $("#not-ready").replaceChildren(...not_ready.map((reason) => element("li", {}, `Not ready, because ${reason}`)));
    $("#finish").disabled = not_ready.length > 0;
    $("#review").hidden = this.study.mode === "feedback";
    $("#done-title").textContent = not_ready.length ? "Not ready yet" : "All cases are answered";
    $("#done-title").focus();
    if (not_ready.length) setTimeout(() => { if (!$("#done").hidden) told(() => this.complete())(); }, 3000);
  }

  async finish() {
    await this.post("finish");
    this.panel("finished");
  }

  // --- keys that can be changed ------------------------------------------------------------------------

  showKeys() {
    $("#left-key").textContent = this.keys.left;
    $("#right-key").textContent = this.keys.right;
  }

  editKeys() {
    $("#key-fields").replaceChildren(...Object.entries(NAMES).map(([name, label]) => element("label", {}, element("span", {}, label), element("input", { type: "text", maxLength: 1, name, value: this.keys[name] }))));
    $("#key-map").showModal();
  }

  keysEdited() {
    if ($("#key-map").returnValue !== "save") return;
    const wanted = Object.fromEntries([...$("#key-fields").querySelectorAll("input")].map((input) => [input.name, input.value.toLowerCase()]));
    const values = Object.values(wanted);
    if (values.some((value) => !/^[a-z]$/.test(value)) || new Set(values).size !== values.length) { show(new Problem(422, { detail: "Keys: one letter each, all different." })); return; }
    this.keys = wanted;
    try { localStorage.setItem(MAP, JSON.stringify(wanted)); } catch { /* for this visit */ }
    this.showKeys();
  }
}

function stored(name) {
  try { return JSON.parse(localStorage.getItem(name)) || {}; } catch { return {}; }
}
