// One run: its figures, settings and layers; and two runs against each other.
const runs = new Map(data.runs.map((run) => [run.number, run]));

function element(name, words, attributes = {}) {
  const made = document.createElement(name);
  if (words !== undefined) made.textContent = words;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

// A number in few digits; bytes and bits by the thousand.
function short(x, unit) {
  if (x === null || x === undefined) return "";
  if ((unit === "bytes" || unit === "bits") && Math.abs(x) >= 1e4) {
    const power = Math.min(3, Math.floor(Math.log10(Math.abs(x)) / 3));
    return `${(x / 1000 ** power).toLocaleString("en", { maximumSignificantDigits: 4 })} ${"kMG"[power - 1]}${unit === "bytes" ? "B" : "bit"}`;
  }
  return Math.abs(x) >= 1e9 || (x && Math.abs(x) < 1e-4) ? x.toExponential(2) : x.toLocaleString("en", { maximumSignificantDigits: 5 });
}
const withError = (figure) => short(figure.value, figure.unit) + (figure.error ? ` ± ${figure.error.toPrecision(2)}` : "");

function table(heads, rows) {
  const part = element("div", undefined, { class: "table" }), wide = element("div", undefined, { class: "wide", tabindex: "0" });
  const made = element("table"), line = made.createTHead().insertRow(), body = made.createTBody();
  for (const head of heads) {
    const cell = element("th", undefined, { scope: "col" });
    cell.append(element("button", head, { type: "button", class: "sort" }));
    line.append(cell);
  }
  for (const row of rows) {
    const inserted = body.insertRow();
    for (const cell of row) {
      const [words, kind] = Array.isArray(cell) ? cell : [cell, ""];
      const made = inserted.insertCell();
      made.textContent = words;
      if (kind) made.className = kind;
    }
  }
  if (rows.length > 5) part.append(element("input", undefined, { type: "search", class: "filter", placeholder: "filter rows", "aria-label": "filter rows" }));
  wide.append(made);
  part.append(wide);
  align(made);
  return part;
}

function folded(title, content) {
  const made = element("details");
  made.append(element("summary", title), content);
  return made;
}

function panels(specs, rows) {
  const place = element("div", undefined, { class: "panels" });
  for (const [key, spec] of Object.entries(specs)) {
    const there = rows(key);
    if (!there.length) continue;
    const picture = element("div", undefined, { class: "picture", role: "img", "aria-label": spec.title });
    place.append(picture);
    requestAnimationFrame(() => draw(picture, spec, there));
  }
  return place;
}

function layersOf(run, key) {
  if (key === "spectrum") return run.layers.flatMap((layer) => (layer.spectrum ?? []).map(([index, value]) => ({ name: layer.name, index, value })));
  return run.layers.filter((layer) => layer.block !== null && layer[key] !== null);
}

function showRun() {
  // by the address: `:target` is not yet told when a page is opened at a run
  const section = document.getElementById(location.hash.slice(1)), place = section?.querySelector(":scope > .found");
  if (!place || place.hasChildNodes()) return;
  const run = runs.get(Number(section.dataset.run));
  const compare = element("button", "hold it against another run", { type: "button" });
  compare.addEventListener("click", () => {
    document.getElementById("run-a").value = run.number;
    showDifference();
    location.hash = "difference";
  });
  place.append(compare, panels(data.ofRun, (key) => layersOf(run, key)));
  const figures = run.figures.map((figure) => [figure.key, withError(figure), short(figure.dense, figure.unit), figure.unit]);
  place.append(element("h3", "Figures"), table(["figure", "value", "dense", "unit"], figures));
  place.append(folded("Settings", table(["setting", "value"], Object.entries(run.settings))));
  if (!run.layers.length) return;
  const rows = run.layers.map((layer) => [layer.name, layer.m ? `${layer.m} × ${layer.n}` : "", layer.form ?? layer.rank ?? "dense", short(layer.share), short(layer.bits), short(layer.lost)]);
  place.append(folded("Layers", table(["layer", "m × n", "rank", "share of full rank", "share of bits", "energy lost"], rows)));
}

// Better, worse, or inside both standard errors.
function verdict(a, b) {
  if (!a.better || a.value === null || b.value === null || a.value === b.value) return "";
  if (a.error && b.error && Math.abs(a.value - b.value) <= a.error + b.error) return "inside the errors";
  return (b.value < a.value) === (a.better === "lower") ? "better" : "worse";
}

function showDifference() {
  const [a, b] = ["run-a", "run-b"].map((id) => runs.get(Number(document.getElementById(id).value)));
  const place = document.getElementById("difference-found");
  place.replaceChildren();
  if (!a || !b) return;
  const keys = [...new Set([...Object.keys(a.settings), ...Object.keys(b.settings)])];
  const differing = keys.filter((key) => a.settings[key] !== b.settings[key]);
  const settings = differing.map((key) => [key, a.settings[key] ?? "", b.settings[key] ?? ""]);
  place.append(element("h3", "Settings that differ"), settings.length ? table(["setting", "A", "B"], settings) : element("p", "None."));
  const there = new Map(b.figures.map((figure) => [figure.key, figure]));
  const figures = a.figures.filter((figure) => there.has(figure.key)).map((one) => {
    const other = there.get(one.key), both = one.value !== null && other.value !== null, said = verdict(one, other);
    const change = both ? short(other.value - one.value, one.unit) : "", ratio = both && one.value ? (other.value / one.value).toFixed(3) : "";
    return [one.key, withError(one), withError(other), change, ratio, [said, said.includes(" ") ? "" : said]];
  });
  place.append(element("h3", "Figures"), table(["figure", "A", "B", "B − A", "B / A", "B is"], figures));
  if (a.layers.length && b.layers.length) place.append(element("h3", "Layers"));
  const first = new Map(a.layers.map((layer) => [layer.name, layer]));
  place.append(panels(data.ofTwo, (key) =>
    layersOf(b, key).filter((layer) => (first.get(layer.name)?.[key] ?? null) !== null).map((layer) => ({
      ...layer,
      rank: `${first.get(layer.name).form ?? first.get(layer.name).rank ?? "dense"} → ${layer.form ?? layer.rank ?? "dense"}`,
      [key]: layer[key] - first.get(layer.name)[key],
    })),
  ));
}

for (const id of ["run-a", "run-b"]) document.getElementById(id).addEventListener("change", showDifference);
document.getElementById("run-b").selectedIndex = Math.min(1, runs.size - 1);
showDifference();
addEventListener("hashchange", showRun);
showRun();
document.addEventListener("click", (event) => {
  if (event.target.matches(".copy")) navigator.clipboard?.writeText(event.target.previousElementSibling.textContent);
});
