import { $, ask, askJson, element, fillModels, show, told } from "./common.js";

const POLL_MS = 2000;
const ENDED = new Set(["done", "failed", "canceled"]);

function row(job) {
  const ended = ENDED.has(job.state);
  const cancel = element("button", { type: "button", onclick: told(async () => {
    await ask(`v1/jobs/${encodeURIComponent(job.id)}`, { method: "DELETE" });
    await refresh();
  }) }, "Cancel");
  cancel.setAttribute("aria-label", `Cancel job ${job.id}`);
  const bar = element("progress", { max: job.of, value: job.images });
  bar.setAttribute("aria-label", `Progress of job ${job.id}`);
  return element("tr", {},
    element("th", { scope: "row", className: "address" }, job.id.slice(0, 12)),
    element("td", {}, String(job.ask.model)),
    element("td", {}, job.state),
    element("td", { className: "number" }, `${job.images.toLocaleString()} of ${job.of.toLocaleString()}`),
    element("td", {}, bar),
    element("td", {}, ended ? null : cancel));
}

let shown = "";
async function refresh() {
  const { jobs } = await askJson("v1/jobs");
  $("#status").textContent = jobs.length ? "" : "No jobs yet.";
  $("#table").hidden = !jobs.length;
  const now = JSON.stringify(jobs);
  // A table that did not change stays: focus and selection with it.
  if (now !== shown) $("#table tbody").replaceChildren(...jobs.map(row));
  shown = now;
}

$("#form").addEventListener("submit", told(async () => {
  const json = { kind: "archive", model: $("#model").value, count: Number($("#count").value), labels: $("#labels").value, seed: Number($("#seed").value), format: $("#format").value };
  const job = await askJson("v1/jobs", { method: "POST", json });
  await refresh();
  $("#status").textContent = `Job ${job.id.slice(0, 12)} is ${job.state}.`;
}));

await told(refresh)();
try { await fillModels("generator", $("#model")); } catch (error) { show(error); }
setInterval(() => { if (!document.hidden) refresh().catch(() => {}); }, POLL_MS);
