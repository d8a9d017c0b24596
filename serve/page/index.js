import { $, askJson, element, told } from "./common.js";

await told(async () => {
  const waits = $("#no-models");
  waits.textContent = "";
  const { models } = await askJson("v1/models");
  waits.textContent = models.length ? "" : "No model is loaded.";
  $("#models").hidden = !models.length;
  $("#models tbody").replaceChildren(...models.map((model) => element("tr", {},
    element("th", { scope: "row" }, model.name),
    element("td", {}, model.kind),
    element("td", {}, model.classes.join(", ") || "-"),
    element("td", {}, `${model.size_px} px`),
    element("td", { className: "address" }, model.sha256.slice(0, 12)))));
})();
