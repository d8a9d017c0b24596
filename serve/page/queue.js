// Answers on their way: each is kept in this browser until the service has said that it is saved.

import { ask } from "./common.js";

const RETRY_MS = 2000, MOST_RETRY_MS = 30_000;

export class Queue {
  // `told(state)` hears { waiting, savedAt, error }; `stored(answer, entry, truth)` each that is saved;
  // `refused(entry, problem)` each that never will be.
  constructor(study, reader, csrf, { told, stored, refused }) {
    Object.assign(this, { study, csrf, told, stored, refused, memory: new Map(), sending: null, timer: 0, failures: 0, savedAt: null });
    this.prefix = `medray-answer:${study}:${reader}:`;
    window.addEventListener("online", () => this.flush());
  }

  entries() {
    const found = new Map(this.memory);
    try {
      for (let n = 0; n < localStorage.length; n++) {
        const name = localStorage.key(n);
        if (name.startsWith(this.prefix)) found.set(name.slice(this.prefix.length), JSON.parse(localStorage.getItem(name)));
      }
    } catch { /* no storage here: what is in memory is all there is */ }
    return [...found.values()].sort((a, b) => a.order - b.order);
  }

  waitsFor(item) { return this.entries().some((entry) => entry.answer.item === item); }

  add(answer) {
    const token = crypto.getRandomValues(new Uint8Array(16)).reduce((text, byte) => text + byte.toString(16).padStart(2, "0"), "");
    const entry = { order: Date.now() + Math.random(), answer: { ...answer, token } };
    this.memory.set(token, entry);
    try { localStorage.setItem(this.prefix + token, JSON.stringify(entry)); } catch { /* kept in memory */ }
    return this.flush();
  }

  #drop(entry) {
    this.memory.delete(entry.answer.token);
    try { localStorage.removeItem(this.prefix + entry.answer.token); } catch { /* was in memory */ }
  }

  // Sends what waits, one after the other; a second call joins the first.
  flush() {
    clearTimeout(this.timer);
    this.sending ??= this.#send().finally(() => { this.sending = null; });
    return this.sending;
  }

  async #send() {
    for (;;) {
      const [entry] = this.entries();
      this.told({ waiting: this.entries().length, savedAt: this.savedAt, error: null });
      if (!entry) return;
      const { correctsOwn, ...sent } = entry.answer;
      // A correction of an answer that was itself still on its way: that one has a number by now.
      if (correctsOwn) sent.corrects = this.known(sent.item);
      try {
        const answer = await ask(`v1/studies/${this.study}/answers`, { method: "POST", json: sent, headers: { "x-csrf-token": this.csrf }, withKey: false });
        const saved = await answer.json();
        this.#drop(entry);
        this.failures = 0;
        this.savedAt = new Date();
        this.stored(saved, entry);
      } catch (error) {
        if ([404, 409, 422].includes(error.status)) { this.#drop(entry); this.refused(entry, error); continue; }
        const wait = Math.min(RETRY_MS * 2 ** this.failures++, MOST_RETRY_MS);
        this.timer = setTimeout(() => this.flush(), Math.max(wait, 1000 * (error.retryAfter && error.retryAfter < 30 ? error.retryAfter : 0)));
        this.told({ waiting: this.entries().length, savedAt: this.savedAt, error });
        return;
      }
    }
  }
}
