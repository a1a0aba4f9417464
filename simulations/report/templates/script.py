"""The pages' script, which only adds to what is there: words at points, tables to sort, a budget to slide."""

SCRIPT = """\
"use strict";
(() => {
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const make = (tag, name, text) => Object.assign(document.createElement(tag), { className: name, textContent: text });

  const words = make("div", "words", "");
  words.hidden = true;
  document.body.append(words);
  for (const tip of all("svg .tip")) {
    const title = tip.querySelector("title");
    tip.dataset.words = title.textContent;
    title.remove();
    tip.addEventListener("pointerenter", (event) => {
      words.textContent = tip.dataset.words;
      words.hidden = false;
      const { width, height } = words.getBoundingClientRect();
      const left = Math.min(event.clientX + 12, document.documentElement.clientWidth - width - 8);
      words.style.left = `${Math.max(8, left) + scrollX}px`;
      const above = event.clientY - height - 12;
      words.style.top = `${(above > 12 ? above : event.clientY + 20) + scrollY}px`;
    });
    tip.addEventListener("pointerleave", () => { words.hidden = true; });
  }

  const UNITS = { KB: 1e3, MB: 1e6, GB: 1e9 };
  const number = (text) => {
    const found = /^[<+]?\\s*([-\\u2212]?[\\d.,]+)\\s*(KB|MB|GB)?/.exec(text);
    return found ? Number(found[1].replaceAll(",", "").replace("\\u2212", "-")) * (UNITS[found[2]] ?? 1) : NaN;
  };
  const compare = (one, other) => {
    const [a, b] = [number(one), number(other)];
    if (!Number.isNaN(a) && !Number.isNaN(b)) return a - b;
    return Number.isNaN(a) - Number.isNaN(b) || one.localeCompare(other);
  };
  for (const table of all("table")) {
    const heads = all("thead th", table), body = table.tBodies[0];
    if (heads.length < 3 || body.rows.length < 3) continue;
    heads.forEach((head, place) => {
      const button = make("button", "sort", head.textContent);
      button.type = "button";
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const down = head.ariaSort === "ascending";
        for (const other of heads) other.ariaSort = null;
        head.ariaSort = down ? "descending" : "ascending";
        const cell = (row) => row.cells[place].textContent.trim();
        const rows = [...body.rows].sort((one, other) => (down ? -1 : 1) * compare(cell(one), cell(other)));
        body.append(...rows);
      });
    });
  }

  const slider = document.querySelector("#budget"), table = document.querySelector("#budgets table");
  if (slider && table) {
    const heads = all("thead th", table).map((head) => head.textContent.trim());
    const column = heads.indexOf("share"), recall = heads.findIndex((head) => head.startsWith("Recall@"));
    const rows = [...table.tBodies[0].rows].map((row) => [row, [...row.cells].map((cell) => cell.textContent.trim())]);
    const shares = [...new Set(rows.map(([, cells]) => cells[column]))].sort(compare);
    const input = slider.querySelector("input"), told = slider.querySelector("output");
    input.max = shares.length - 1;
    const show = () => {
      const share = shares[input.value], lines = [];
      for (const [row, cells] of rows) {
        const here = cells[column] === share;
        row.classList.toggle("at", here);
        if (!here) continue;
        const isRatio = (head) => head.startsWith("relative to ");
        const ratios = heads.map((head, place) => isRatio(head) && `, ${cells[place]} ${head}`);
        lines.push(`${cells[0]}: ${heads[recall]} ${cells[recall]}${ratios.filter(Boolean).join("")}`);
      }
      const size = rows.find(([, cells]) => cells[column] === share)[1][heads.indexOf("budget KB")];
      input.ariaValueText = `${share}, ${size} KB`;
      told.replaceChildren(make("b", "", `${share}, ${size} KB`), ...lines.map((line) => make("div", "", line)));
      for (const tip of all("svg .tip")) {
        tip.classList.toggle("at", tip.dataset.words.includes(` at ${share}, `));
      }
    };
    input.addEventListener("input", show);
    input.value = Math.floor(input.max / 2);
    slider.hidden = false;
    show();
  }
})();
"""
