// Tables: a click on a heading sorts, words in the field above filter, chips at the top hide lines.
const data = JSON.parse(document.getElementById("data").textContent);
const hidden = new Set();

const numberOf = (words) => {
  const found = /^[-+]?\d[\d,]*(\.\d+)?(e[-+]?\d+)?/i.exec(words.trim());
  return found ? Number(found[0].replaceAll(",", "")) : /^(inf|nan|not finite)/.test(words) ? Infinity : NaN;
};

function compare(a, b) {
  const [x, y] = [numberOf(a), numberOf(b)];
  if (!Number.isNaN(x) && !Number.isNaN(y)) return x === y ? 0 : x - y;
  return a.localeCompare(b, "en", { numeric: true });
}

function sort(head) {
  const table = head.closest("table"), body = table.tBodies[0];
  const down = head.getAttribute("aria-sort") === "ascending";
  for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const at = head.cellIndex, said = (row) => row.cells[at].textContent.trim();
  const [full, blank] = [[], []];
  for (const row of body.rows) (said(row) ? full : blank).push(row);
  full.sort((a, b) => (down ? -1 : 1) * compare(said(a), said(b)));
  body.append(...full, ...blank); // what lacks the figure stays below
}

function filter(part) {
  const words = (part.querySelector(".filter")?.value ?? "").toLowerCase().split(/\s+/).filter(Boolean);
  for (const row of part.querySelectorAll("tbody tr")) {
    const text = row.textContent.toLowerCase();
    row.hidden = hidden.has(row.dataset.series) || !words.every((word) => text.includes(word));
  }
}

// Numbers to the right.
function align(table) {
  for (const head of table.tHead.rows[0].cells) {
    const cells = [...table.tBodies[0].rows].map((row) => row.cells[head.cellIndex]);
    const said = cells.map((cell) => cell.textContent.trim()).filter(Boolean);
    if (said.length && said.every((words) => !Number.isNaN(numberOf(words)) && !/^\d{4}-/.test(words))) {
      for (const cell of [head, ...cells]) cell.classList.add("number");
    }
  }
}

for (const table of document.querySelectorAll("table")) align(table);
document.addEventListener("click", (event) => {
  const button = event.target.closest("button.sort");
  if (button) sort(button.closest("th"));
});
document.addEventListener("input", (event) => {
  if (event.target.matches(".filter")) filter(event.target.closest(".table"));
});
