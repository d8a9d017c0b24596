import { $, ask, askJson, element, fillModels, save, told } from "./common.js";
import { decode, paint } from "./image.js";
import { Viewer, tools } from "./viewer.js";

const WALK_STEPS = 17, EXTENSION = { png: "png", png16: "png", dicom: "dcm" };
const viewer = new Viewer($("#view"), "Synthetic image: drag for window and level, arrow keys too");
const bar = tools($("#tools"), () => [viewer]);
viewer.changed = bar.refresh;
$("#view").addEventListener("keydown", (event) => viewer.key(event));
const realViewer = new Viewer($("#real-view"), "Real image: drag for window and level, arrow keys too");
$("#real-view").addEventListener("keydown", (event) => realViewer.key(event));
let models = new Map(), walk = [], chosen = null, running = null;

const model = () => models.get($("#model").value);

function onModel() {
  const { facts } = model(), choices = Object.keys(facts.targets || {});
  const plain = facts.plain ? [element("option", { value: "" }, "as they come")] : [];
  $("#class").replaceChildren(...plain, ...choices.map((name) => element("option", { value: name }, name)));
  onClass();
}

function onClass() {
  const slider = $("#truncation");
  slider.disabled = !$("#class").value;
  if (slider.disabled) slider.value = 1;
  $("#truncation-value").textContent = Number(slider.value).toFixed(2);
  $("#truncation-note").textContent = slider.disabled
    ? "Without a class there is no mean that images could lie nearer to."
    : "Below 1 images lie nearer to the mean of their class: surer, less diverse.";
}

// What is asked of the service; the same again makes the same bytes.
function order(more) {
  const name = $("#class").value;
  return { model: $("#model").value, seed: Number($("#seed").value), ...(name ? { class: name, truncation: Number($("#truncation").value) } : {}), ...more };
}

// The images of an answer, one or several parts: their addresses and bytes.
async function parts(answer) {
  const type = answer.headers.get("content-type"), data = await answer.arrayBuffer();
  const boundary = /boundary="([^"]+)"/.exec(type);
  if (!boundary) return [{ address: answer.headers.get("x-medray-address"), data }];
  const text = new TextDecoder("latin1"), found = [];
  for (let at = 0; ;) {
    const line = `--${boundary[1]}`;
    if (text.decode(data.slice(at, at + line.length + 2)) !== `${line}\r\n`) return found;
    let end = at;
    const bytes = new Uint8Array(data);
    while (!(bytes[end] === 13 && bytes[end + 1] === 10 && bytes[end + 2] === 13 && bytes[end + 3] === 10)) if (++end > bytes.length) return found;
    const head = text.decode(data.slice(at, end)), length = Number(/content-length: (\d+)/i.exec(head)[1]);
    found.push({ address: /x-medray-address: (\S+)/i.exec(head)[1], data: data.slice(end + 4, end + 4 + length) });
    at = end + 4 + length + 2;
  }
}

async function make(asked) {
  if (running) running.abort();
  running = new AbortController();
  const answer = await ask("v1/images/generations", { method: "POST", json: { ...asked, format: "png16" }, signal: running.signal });
  return Promise.all((await parts(answer)).map(async ({ address, data }) => ({ address, image: await decode(data) })));
}

function pick(made, asked) {
  chosen = { ...made, asked };
  $("#real").hidden = true;
  $("#large").hidden = false;
  $("#address").textContent = made.address;
  return viewer.show(made.image, { keep: Boolean(viewer.image) });
}

function thumb(made, asked) {
  const canvas = element("canvas", {});
  paint(canvas, made.image);
  const button = element("button", { type: "button", onclick: () => {
    for (const other of $("#grid").children) other.setAttribute("aria-pressed", String(other === button));
    pick(made, asked);
  } }, canvas);
  button.setAttribute("aria-label", `Synthetic image ${asked.start}`);
  button.setAttribute("aria-pressed", "false");
  return button;
}

$("#form").addEventListener("submit", told(async () => {
  const count = Number($("#count").value), start = Number($("#start").value), asked = order({});
  $("#status").textContent = "Generating...";
  $("#make").disabled = true;
  try {
    const began = performance.now();
    const made = await make({ ...asked, n: count, start });
    $("#grid").replaceChildren(...made.map((one, n) => thumb(one, { ...asked, start: start + n })));
    $("#grid-title").hidden = false;
    $("#grid").firstChild.click();
    $("#status").textContent = `${made.length} synthetic images in ${((performance.now() - began) / 1000).toFixed(1)} s.`;
  } catch (error) {
    $("#status").textContent = "Nothing generated.";
    throw error;
  } finally {
    $("#make").disabled = false;
  }
}));

$("#walk-make").addEventListener("click", told(async () => {
  const start = Number($("#walk-from").value), to = Number($("#walk-to").value), asked = order({ start, to });
  $("#status").textContent = "Walking...";
  walk = (await make({ ...asked, n: WALK_STEPS })).map((made, n) => [made, { ...asked, n: WALK_STEPS, step: n }]);
  const slider = $("#walk-at");
  slider.disabled = false;
  slider.max = String(walk.length - 1);
  slider.value = "0";
  $("#status").textContent = `${walk.length} synthetic images from ${start} to ${to}: move the slider.`;
  await step();
  slider.focus();
}));

async function step() {
  const n = Number($("#walk-at").value);
  $("#walk-value").textContent = (n / Math.max(walk.length - 1, 1)).toFixed(2);
  if (walk[n]) await pick(...walk[n]);
}

// The chosen image again, in another format.
async function again(format) {
  const { step: number, ...asked } = chosen.asked;
  const answer = await ask("v1/images/generations", { method: "POST", json: { ...asked, format } });
  return (await parts(answer))[number ?? 0];
}

$("#nearest").addEventListener("click", told(async () => {
  const asked = chosen, { data } = await again("png16");
  const found = await askJson("v1/nearest", { method: "POST", body: data, headers: { "content-type": "image/png" } });
  if (asked !== chosen) return;
  const [one] = found.images[0].nearest, png = Uint8Array.from(atob(one.picture_png), (letter) => letter.charCodeAt(0));
  const copy = one.similarity >= found.real.copy_from ? "Nearly the same picture: it may be a copy." : "Not nearly the same picture.";
  $("#real-note").textContent = `Similarity ${one.similarity.toFixed(3)} (${found.real.similarity}). ${copy} ${one.key}${one.labels.length ? `, ${one.labels.join(", ")}` : ""}; of ${found.real.images.toLocaleString()} training images.`;
  $("#real").hidden = false;
  await realViewer.show(await decode(png.buffer));
  $("#real").scrollIntoView({ block: "nearest" });
}));

for (const button of document.querySelectorAll("[data-save]")) {
  button.addEventListener("click", told(async () => {
    const format = button.dataset.save, found = await again(format);
    save(new Blob([found.data]), `SYNTHETIC-${found.address.replace(/[^\w.-]+/g, "_")}.${EXTENSION[format]}`);
  }));
}

$("#walk-at").addEventListener("input", step);
$("#model").addEventListener("change", onModel);
$("#class").addEventListener("change", onClass);
$("#truncation").addEventListener("input", onClass);
await told(async () => {
  models = await fillModels("generator", $("#model"));
  onModel();
  $("#nearest").hidden = !(await askJson("v1/nearest")).images;
})();
