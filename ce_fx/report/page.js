"use strict";
const table = document.getElementById("layers");
const body = table && table.tBodies[0];
const said = document.getElementById("said");
const rows = body ? [...body.rows] : [];
const first = { text: "ascending", number: "descending" };
const other = { ascending: "descending", descending: "ascending" };

function compare(a, b, column, kind) {
  const [x, y] = [a, b].map((row) => row.cells[column].dataset.value);
  if (x === "" || y === "") return (x === "") - (y === "") || 0;
  return kind === "number" ? Number(x) - Number(y) : x.localeCompare(y, undefined, { numeric: true });
}

// A heading sorts one way, then the other, then the rows stand again as the model runs.
function sortBy(heading) {
  const kind = heading.dataset.kind;
  const now = heading.getAttribute("aria-sort");
  const next = now === "none" ? first[kind] : now === first[kind] ? other[now] : "none";
  for (const each of heading.parentNode.cells) if (each.dataset.kind) each.setAttribute("aria-sort", "none");
  heading.setAttribute("aria-sort", next);
  const column = heading.cellIndex;
  const order = [...rows];
  if (next !== "none") {
    order.sort((a, b) => {
      const unknown = (a.cells[column].dataset.value === "") - (b.cells[column].dataset.value === "");
      return unknown || compare(a, b, column, kind) * (next === "descending" ? -1 : 1);
    });
  }
  body.append(...order);
  said.textContent = next === "none" ? "as the model runs" : `sorted by ${heading.dataset.name}, ${next}`;
}

for (const heading of document.querySelectorAll("#layers thead th[data-kind]")) {
  heading.querySelector("button").addEventListener("click", () => sortBy(heading));
}

function open() {
  const target = location.hash && document.getElementById(location.hash.slice(1));
  if (target && target.tagName === "DETAILS") target.open = true;
}
window.addEventListener("hashchange", open);
open();
