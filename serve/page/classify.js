import { $, askJson, element, fillModels, show, told } from "./common.js";
import { decode, decodeDicom, decodePng } from "./image.js";
import { Viewer, tools } from "./viewer.js";

const viewer = new Viewer($("#view"), "The image: drag for window and level, arrow keys too");
const bar = tools($("#tools"), () => [viewer]);
viewer.changed = bar.refresh;
$("#view").addEventListener("keydown", (event) => viewer.key(event));
let models = new Map(), said = null, buffer = null, asking = 0;

const percent = (value) => `${(100 * value).toFixed(1)}%`;

async function classify(file) {
  const number = ++asking;
  $("#status").textContent = `Reading ${file.name}...`;
  $("#result").hidden = true;
  try {
    const read = await file.arrayBuffer();
    const query = new URLSearchParams({ model: $("#model").value, heatmap: "true", overlay: "true" });
    const answer = await askJson(`v1/classify?${query}`, { method: "POST", body: read, headers: { "content-type": "application/octet-stream" } });
    if (number !== asking) return;
    [said, buffer] = [answer, read];
    $("#heat").checked = false;
    $("#result").hidden = false;
    $("#frame").max = String(said.images.length - 1);
    $("#frame").value = "0";
    $("#frame-label").hidden = said.images.length < 2;
    $("#status").textContent = `${file.name}: ${said.images.length} image${said.images.length > 1 ? "s" : ""} read.`;
    await frame();
  } catch (error) {
    $("#status").textContent = `${file.name} was not classified.`;
    throw error;
  }
}

async function frame() {
  const found = said.images[Number($("#frame").value)], decided = new Set(found.decided);
  $("#frame-value").textContent = `${found.frame + 1} of ${said.images.length}`;
  $("#probabilities").replaceChildren(...Object.entries(found.probabilities).map(([name, value]) => {
    const level = element("progress", { max: 1, value });
    level.setAttribute("aria-hidden", "true");
    return element("tr", {}, element("th", { scope: "row" }, name + (decided.has(name) ? " \u2713 decided" : "")), element("td", { className: "number" }, percent(value)), element("td", {}, level));
  }));
  $("#calibration").textContent = said.calibrated ? `Calibrated: ${said.calibrated}.` : "Probabilities as the classifier gives them.";
  $("#digest").textContent = `model ${said.model} ${said.sha256.slice(0, 12)}`;
  familiar(found);
  await picture(found);
  await heat(found);
}

function familiar(found) {
  const flag = $("#flag");
  flag.hidden = found.unlike !== true;
  const why = found.coloured ? "In colour, unlike the training data" : "Unlike the training data";
  flag.textContent = `\u26a0 ${why}: do not trust these probabilities.`;
  const limit = said.ood ? `, flagged above ${said.ood.threshold.toPrecision(4)}` : "";
  $("#familiar").textContent = found.ood_score === null
    ? `Not known whether it is like the training data: ${said.ood_reason || "the classifier has no such measure"}.`
    : `Distance from the training data ${found.ood_score.toPrecision(4)}${limit}.`;
}

async function picture(found) {
  let image = null;
  try {
    image = found.kind === "dicom" ? decodeDicom(buffer, found.frame) : await decode(buffer);
    if (image.width !== found.width || image.height !== found.height) image = null;
  } catch { /* compressed, or of a kind that no browser shows */ }
  $("#no-view").hidden = Boolean(image);
  $("#stage").hidden = $("#tools").hidden = false;
  if (image) { await viewer.show(image); return; }
  if (!found.overlay_png) { $("#stage").hidden = $("#tools").hidden = true; return; }
  viewer.image = null;
  viewer.draw();
}

const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer;

// The heatmap over the image: warm and clear where it is hot, nothing where it is cold.
async function heat(found) {
  viewer.overlay = null;
  const place = found.place, wanted = $("#heat").checked && found.heatmap_png && place;
  $("#heat").disabled = !found.heatmap_png;
  $("#heat-note").textContent = found.heatmap_class
    ? `It shows what moved the classifier towards \u201c${found.heatmap_class}\u201d, which need not be a finding. Off at first, so that it does not lead the eye.`
    : "This classifier gives no heatmap.";
  if (wanted && viewer.image) {
    const map = await decodePng(bytes(found.heatmap_png)), canvas = element("canvas", { width: map.width, height: map.height });
    const context = canvas.getContext("2d"), pixels = context.createImageData(map.width, map.height);
    for (let n = 0; n < map.data.length; n++) pixels.data.set([255, 200 - 0.6 * map.data[n], 0, 0.65 * map.data[n]], 4 * n);
    context.putImageData(pixels, 0, 0);
    // The heatmap covers the classifier's square, in which the image has its place.
    const across = found.width / place.width, down = found.height / place.height;
    viewer.overlay = { canvas, left: -place.left * across, top: -place.top * down, size: [place.size_px * across, place.size_px * down] };
  } else if (wanted) {
    await viewer.show(await decodePng(bytes(found.overlay_png)));
  }
  viewer.draw();
}

const drop = $("#drop");
drop.addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
drop.addEventListener("dragleave", () => drop.classList.remove("over"));
drop.addEventListener("drop", told(async (event) => {
  drop.classList.remove("over");
  if (event.dataTransfer.files.length) await classify(event.dataTransfer.files[0]);
}));
// A file dropped beside the field is not opened in place of the page.
for (const kind of ["dragover", "drop"]) window.addEventListener(kind, (event) => event.preventDefault());
$("#file").addEventListener("change", told(async () => { if ($("#file").files.length) await classify($("#file").files[0]); }));
$("#form").addEventListener("submit", (event) => event.preventDefault());
$("#frame").addEventListener("input", told(frame));
$("#heat").addEventListener("change", told(() => heat(said.images[Number($("#frame").value)])));
try { models = await fillModels("classifier", $("#model")); } catch (error) { show(error); }
