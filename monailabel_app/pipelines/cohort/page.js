"use strict";
(() => {
  const NAMES = ["scan", "state", "sequence", "model", "score", "p_value", "lesions", "volume_ml", "flagged", "gate",
    "drift", "text", "seconds", "time", "picture"];
  const at = Object.fromEntries(NAMES.map((name, index) => [name, index]));
  const PAGE = 100;
  const rows = JSON.parse(document.getElementById("rows").textContent);
  const input = (name) => document.getElementById(name);
  const body = input("body");
  let shown = rows;
  let first = 0;
  let column = "";
  let direction = -1;

  for (const name of ["sequence", "model"]) {
    for (const value of [...new Set(rows.map((row) => row[at[name]]))].filter(Boolean).sort()) {
      input(name).append(new Option(value, value));
    }
  }

  function compare(one, other) {
    const left = one[at[column]];
    const right = other[at[column]];
    const empty = (value) => value === null || value === "";
    if (empty(left) || empty(right)) return empty(left) - empty(right);
    return direction * (typeof left === "number" ? left - right : String(left).localeCompare(String(right)));
  }

  function choose() {
    const words = input("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const flag = input("flag").value;
    shown = rows.filter((row) => {
      for (const name of ["state", "sequence", "model"]) {
        if (input(name).value && row[at[name]] !== input(name).value) return false;
      }
      if (flag === "clean" && (row[at.flagged] || row[at.gate] || row[at.drift] || row[at.state] !== "analysed")) return false;
      if (flag && flag !== "clean" && !row[at[flag]]) return false;
      const text = words.length ? `${row[at.scan]} ${row[at.text]}`.toLowerCase() : "";
      return words.every((word) => text.includes(word));
    });
    if (column) shown.sort(compare);
    first = 0;
    draw();
  }

  function cell(text, kind) {
    const made = document.createElement("td");
    made.textContent = text;
    if (kind) made.className = kind;
    return made;
  }

  const digits = (value, count) => (value === null ? "–" : Number(value).toFixed(count));

  function line(row, rank) {
    const made = document.createElement("tr");
    made.className = row[at.state] === "failed" ? "failed" : row[at.flagged] ? "flagged" : "";
    const words = cell("", "words");
    for (const [name, label] of [["gate", "unlike training scans"], ["drift", "drift"]]) {
      if (!row[at[name]]) continue;
      const mark = document.createElement("span");
      mark.className = "mark";
      mark.textContent = label;
      words.append(mark);
    }
    words.append(row[at.text]);
    const picture = cell("", "picture");
    if (row[at.picture]) {
      const image = document.createElement("img");
      image.loading = "lazy";
      image.alt = `planes of ${row[at.scan]}`;
      image.src = row[at.picture];
      const link = document.createElement("a");
      link.href = image.src;
      link.append(image);
      picture.append(link);
    }
    made.append(
      cell(String(rank), "num"), cell(row[at.scan], "scan"), cell(row[at.state]), cell(row[at.sequence]),
      cell(row[at.model]), cell(digits(row[at.score], 2), "num score"), cell(digits(row[at.p_value], 3), "num"),
      cell(row[at.lesions] === null ? "–" : String(row[at.lesions]), "num"), cell(digits(row[at.volume_ml], 2), "num"),
      words, cell(digits(row[at.seconds], 0), "num"), picture,
    );
    return made;
  }

  function draw() {
    body.replaceChildren(...shown.slice(first, first + PAGE).map((row, index) => line(row, first + index + 1)));
    input("count").textContent = `${shown.length} of ${rows.length} scans`;
    input("place").textContent = shown.length ? `${first + 1} to ${Math.min(first + PAGE, shown.length)}` : "none";
    input("back").disabled = first === 0;
    input("next").disabled = first + PAGE >= shown.length;
    for (const button of document.querySelectorAll("th button")) {
      const chosen = button.dataset.column === column;
      button.parentElement.setAttribute("aria-sort", chosen ? (direction < 0 ? "descending" : "ascending") : "none");
    }
  }

  document.getElementById("filters").addEventListener("input", choose);
  document.getElementById("filters").addEventListener("submit", (event) => event.preventDefault());
  for (const button of document.querySelectorAll("th button")) {
    button.addEventListener("click", () => {
      direction = button.dataset.column === column ? -direction : button.dataset.column === "p_value" ? 1 : -1;
      column = button.dataset.column;
      choose();
    });
  }
  const turn = (step) => { first = Math.max(0, first + step * PAGE); draw(); };
  input("back").addEventListener("click", () => turn(-1));
  input("next").addEventListener("click", () => turn(1));
  choose();
})();
