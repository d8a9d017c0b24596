// The studies: a reader who came by a link, or the administrator.

import { $, ask, askJson, element, save, show, told } from "./common.js";
import { Reading } from "./reading.js";

const POLL_MS = 5000, REPORTS = { html: "html", csv: "csv", json: "json", imrmc: "imrmc" };

// --- the reader ------------------------------------------------------------------------------------

async function session() {
  const token = location.hash.slice(1);
  if (token) {
    // Out of the address and the history at once: a link is as good as a password.
    history.replaceState(null, "", location.pathname);
    return askJson("v1/studies/login", { method: "POST", json: { token }, withKey: false });
  }
  try {
    return await askJson("v1/studies/session", { withKey: false });
  } catch (error) {
    if (error.status === 401) return null;
    throw error;
  }
}

// --- the administrator --------------------------------------------------------------------------------

const path = (study, rest) => `v1/studies/${encodeURIComponent(study.id)}/${rest}`;

function act(name, work, main = false) {
  return element("button", { type: "button", className: main ? "main" : "", onclick: told(async () => { await work(); await list(true); }) }, name);
}

async function download(study, what, name) {
  save(await (await ask(path(study, what))).blob(), name);
}

function readers(study) {
  return element("div", { className: "scroll" }, element("table", {},
    element("thead", {}, element("tr", {}, ...["Reader", "Answered", "Progress", "Last answer", ""].map((head) => element("th", { scope: "col" }, head)))),
    element("tbody", {}, ...study.readers.map((reader) => {
      const bar = element("progress", { max: reader.total, value: reader.answered });
      bar.setAttribute("aria-label", `Progress of ${reader.name}`);
      const state = reader.revoked ? "access ended" : reader.finished ? "finished" : "";
      return element("tr", {}, element("th", { scope: "row" }, reader.name), element("td", { className: "number" }, `${reader.answered} of ${reader.total}`), element("td", {}, bar),
        element("td", {}, reader.last_s ? new Date(1000 * reader.last_s).toLocaleString() : "-"),
        element("td", {}, state || act("End access", () => ask(path(study, `readers/${reader.id}`), { method: "DELETE" }))));
    }))));
}

function invite(study) {
  const name = element("input", { type: "text", required: true, maxLength: 64 });
  const link = element("p", { className: "address", hidden: true });
  link.setAttribute("role", "status");
  return element("div", {}, element("form", { className: "row", onsubmit: told(async () => {
    const made = await askJson(path(study, "readers"), { method: "POST", json: { name: name.value.trim() } });
    const url = new URL(`studies#${made.token}`, location.href);
    await list(true);
    const shown = document.querySelector(`[data-study="${CSS.escape(study.id)}"] .address`);
    shown.hidden = false;
    shown.textContent = `Link of ${made.name}, shown once: ${url}`;
  }) }, element("label", {}, element("span", {}, "New reader"), name), element("button", {}, "Invite")), link);
}

function card(study) {
  const move = (action) => () => ask(path(study, action), { method: "POST" });
  const buttons = { open: [act("Lock", move("lock"))], locked: [act("Unlock", move("unlock")), act("Close and show the truth", async () => { if (confirm("Close the study? Readers can then answer no more, ever, and the truth is shown.")) await move("close")(); })], closed: [] }[study.status];
  const after = study.status === "closed" ? Object.entries(REPORTS).map(([name, format]) => element("button", { type: "button", onclick: told(() => download(study, `report?format=${format}`, `${study.id}-report.${name}`)) }, `Report ${name}`)) : [];
  const answers = study.status === "open" ? [] : [element("button", { type: "button", onclick: told(() => download(study, "answers", `${study.id}-answers.jsonl`)) }, "Answers")];
  const section = element("section", {}, element("h2", {}, `${study.name} (${study.id})`), element("p", { className: "soft" }, `${study.mode}, ${study.status}`),
    readers(study), study.not_ready.length ? element("ul", {}, ...study.not_ready.map((reason) => element("li", {}, `Not ready, because ${reason}`))) : null,
    study.status === "open" ? invite(study) : null, element("div", { className: "row" }, ...buttons, ...answers, ...after));
  section.dataset.study = study.id;
  return section;
}

let shown = "";
async function list(force = false) {
  const { studies } = await askJson("v1/studies");
  const now = JSON.stringify(studies);
  // What did not change stays: focus, and a name that is being typed.
  if (!force && now === shown) return;
  shown = now;
  $("#studies-list").replaceChildren(...studies.map(card));
  $("#status").textContent = studies.length ? "" : "No study has begun.";
}

async function administer() {
  $("#begin-form").addEventListener("submit", told(async () => {
    await askJson("v1/studies", { method: "POST", json: { study: $("#begin-name").value.trim() } });
    $("#begin-name").value = "";
    await list(true);
  }));
  $("#status").textContent = "Readers come by the link that they were given. Administrators need a key.";
  await list();
  $("#admin").hidden = false;
  const typing = () => document.activeElement && document.activeElement.matches("#studies-list input");
  setInterval(() => { if (!document.hidden && !typing()) list().catch(() => {}); }, POLL_MS);
}

window.addEventListener("hashchange", () => location.reload());
await told(async () => {
  let found;
  try { found = await session(); } catch (error) { $("#status").textContent = "You are not logged in."; throw error; }
  if (found) await new Reading(found).start();
  else await administer();
})();
