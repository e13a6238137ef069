// Pictures: drawn when they come into view; a chip at the top hides its line in all of them.
const views = new Map();

async function draw(place, spec, rows) {
  const whole = rows ? { ...spec, datasets: { layers: rows } } : spec;
  const options = { actions: false, renderer: "svg", tooltip: { disableDefaultStyle: true }, loader: { target: "_self" } };
  const { view } = await vegaEmbed(place, whole, options);
  views.get(place)?.finalize();
  views.set(place, view);
  await view.signal("hidden", [...hidden]).runAsync();
}

const seen = new IntersectionObserver(
  (entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      seen.unobserve(target);
      draw(target, data.pictures[target.dataset.picture]);
    }
  },
  { rootMargin: "600px" },
);
for (const place of document.querySelectorAll("[data-picture]")) seen.observe(place);

function show() {
  for (const chip of document.querySelectorAll(".chip")) chip.setAttribute("aria-pressed", !hidden.has(chip.dataset.series));
  for (const part of document.querySelectorAll(".table")) filter(part);
  for (const view of views.values()) view.signal("hidden", [...hidden]).runAsync();
}

document.getElementById("lines").addEventListener("click", (event) => {
  const chip = event.target.closest(".chip");
  if (chip) hidden.has(chip.dataset.series) ? hidden.delete(chip.dataset.series) : hidden.add(chip.dataset.series);
  else if (event.target.id === "all-lines") hidden.clear();
  show();
});
