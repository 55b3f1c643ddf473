"use strict";
(() => {
  // Sorting: numbers by data-value, the largest first; words by their text. Cells without a value stay at the end.
  const valueOf = (row, column) => {
    const cell = row.cells[column];
    const given = cell.dataset.value;
    return given === undefined ? cell.textContent.trim() : given;
  };
  const sortBy = (table, column, ascending) => {
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row, place) => ({ row, place, value: valueOf(row, column) }));
    const filled = rows.filter((entry) => entry.value !== "");
    const numeric = filled.length > 0 && filled.every((entry) => !Number.isNaN(Number(entry.value)));
    const order = (a, b) => {
      if ((a.value === "") !== (b.value === "")) return a.value === "" ? 1 : -1;
      const by = numeric ? Number(a.value) - Number(b.value) : a.value < b.value ? -1 : a.value > b.value ? 1 : 0;
      return (ascending ? by : -by) || a.place - b.place;
    };
    rows.sort(order).forEach((entry) => body.append(entry.row));
    return numeric;
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      head.querySelector(".sort").addEventListener("click", () => {
        const before = head.getAttribute("aria-sort");
        const first = head.querySelector(".sort").dataset.first || (column === 0 ? "ascending" : "descending");
        const now = before === null ? first : before === "ascending" ? "descending" : "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", now);
        sortBy(table, column, now === "ascending");
      });
    });
  }

  // One operating point of a long table at a time.
  for (const box of document.querySelectorAll(".filtered")) {
    const buttons = [...box.querySelectorAll(".filter")];
    const show = (chosen) => {
      buttons.forEach((button) => button.setAttribute("aria-pressed", String(button === chosen)));
      const point = chosen.dataset.point;
      for (const row of box.querySelectorAll("tbody tr")) {
        row.classList.toggle("hidden", point !== "" && row.dataset.point !== point);
      }
    };
    buttons.forEach((button) => button.addEventListener("click", () => show(button)));
    if (buttons.length > 0) show(buttons.find((button) => button.dataset.point === "balanced") || buttons[0]);
  }

  // A link into folded text unfolds it; paper shows everything.
  const unfold = () => {
    const target = location.hash.length > 1 && document.getElementById(location.hash.slice(1));
    for (let box = target; box; box = box.parentElement) if (box.tagName === "DETAILS") box.open = true;
  };
  addEventListener("hashchange", unfold);
  unfold();
  let folded = [];
  addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll("details:not([open])")];
    folded.forEach((box) => { box.open = true; });
  });
  addEventListener("afterprint", () => folded.forEach((box) => { box.open = false; }));
})();
