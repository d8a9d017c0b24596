// What every page does: ask the service, show what is wrong, keep the key of this tab.

export const $ = (selector, root = document) => root.querySelector(selector);

// An element; text is always text, never markup.
export function element(tag, given = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(given)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name in made && name !== "list" && name !== "form") made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

export class Problem extends Error {
  constructor(status, body, retryAfter) {
    super(body.detail || body.title || `HTTP ${status}`);
    Object.assign(this, { status, code: body.code || "", hint: body.hint || "", retryAfter });
  }
}

const KEY = "medray-key";
const key = () => {
  try { return sessionStorage.getItem(KEY) || ""; } catch { return ""; }
};

// A request of the service; a Problem for every answer that is none, status 0 where none came.
export async function ask(path, { method = "GET", json, body, headers = {}, signal, withKey = true } = {}) {
  const sent = { ...headers };
  if (json !== undefined) { sent["content-type"] = "application/json"; body = JSON.stringify(json); }
  if (withKey && key()) sent.authorization = `Bearer ${key()}`;
  let answer;
  try {
    answer = await fetch(path, { method, body, headers: sent, signal, credentials: "same-origin" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, { code: "offline", detail: "The service cannot be reached." });
  }
  if (answer.ok) return answer;
  let told = {};
  try { told = await answer.json(); } catch { /* no problem+json: the status says it */ }
  const problem = new Problem(answer.status, told, Number(answer.headers.get("retry-after")) || 0);
  if (withKey && (problem.status === 401 || problem.status === 403) && /^(key|scope)_/.test(problem.code)) askForKey();
  throw problem;
}

export const askJson = async (path, options) => (await ask(path, options)).json();

export function show(error) {
  if (error && error.name === "AbortError") return;
  const box = $("#problem");
  box.hidden = !error;
  box.textContent = error ? [error.message, error.hint].filter(Boolean).join("\n") : "";
}

// Runs something a person asked for, and shows what is wrong.
export const told = (work) => async (event) => {
  if (event) event.preventDefault();
  show(null);
  try { return await work(event); } catch (error) { show(error); if (!(error instanceof Problem)) console.error(error); }
};

function askForKey() {
  const dialog = $("#key-dialog");
  if (!dialog.open) dialog.showModal();
}

$("#key-button").addEventListener("click", askForKey);
$("#key-dialog").addEventListener("close", () => {
  const choice = $("#key-dialog").returnValue, input = $("#key-input");
  if (choice === "save" && input.value.trim()) sessionStorage.setItem(KEY, input.value.trim());
  else if (choice === "forget") sessionStorage.removeItem(KEY);
  else { input.value = ""; return; }
  input.value = "";
  location.reload();
});

export function save(blob, name) {
  const url = URL.createObjectURL(blob);
  element("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

// Models of a kind into a select; the models by name.
export async function fillModels(kind, select) {
  const { models } = await askJson("v1/models");
  const own = models.filter((model) => model.kind === kind);
  const byName = new Map([...own].reverse().map((model) => [model.name, model]));
  select.replaceChildren(...[...byName.keys()].map((name) => element("option", { value: name }, name)));
  if (!byName.size) throw new Problem(404, { detail: `No ${kind} is loaded.`, hint: `Start the service with ${kind}=RUN` });
  return byName;
}

export const clock = (date = new Date()) => date.toLocaleTimeString([], { hour12: false });
