"use strict";

// claims: show one verdict or all
for (const filter of document.querySelectorAll(".filter")) {
  const rows = filter.parentElement.querySelectorAll("tbody tr[data-verdict]");
  filter.addEventListener("click", (event) => {
    const chosen = event.target.closest("button");
    if (!chosen) return;
    for (const button of filter.querySelectorAll("button")) {
      button.setAttribute("aria-pressed", String(button === chosen));
    }
    const verdict = chosen.dataset.verdict;
    for (const row of rows) row.hidden = verdict !== "" && row.dataset.verdict !== verdict;
  });
}

// claims: sort by a column; a second click turns the order round
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  for (const heading of table.querySelectorAll("th[data-sort]")) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = heading.textContent;
    heading.replaceChildren(button);
    button.addEventListener("click", () => {
      const up = heading.getAttribute("aria-sort") !== "ascending";
      for (const other of table.querySelectorAll("th")) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", up ? "ascending" : "descending");
      const value = (row) => Number(row.cells[heading.cellIndex].dataset.value);
      const rows = [...body.rows].sort((a, b) => (up ? 1 : -1) * (value(a) - value(b)));
      body.append(...rows);
    });
  }
}

// partition explorer
function element(tag, content, attributes = {}) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...[content].flat());
  return made;
}

function tableOf(heading, columns, rows) {
  const head = element("tr", columns.map((name) => element("th", name, { scope: "col" })));
  const body = rows.map((row) => element("tr", row.map((cell) => element("td", cell))));
  const table = element("table", [element("thead", head), element("tbody", body)], { class: "words" });
  return element("div", [element("h4", heading), element("div", table, { class: "scroll", tabindex: "0" })]);
}

for (const explorer of document.querySelectorAll(".explorer")) {
  const data = JSON.parse(document.getElementById(explorer.dataset.source).textContent);
  const select = explorer.querySelector("select");
  const shown = explorer.querySelector(".explored");
  data.tasks.forEach((task, index) => select.append(element("option", task, { value: index })));

  const go = (task) => {
    const button = element("button", data.tasks[task], { type: "button" });
    button.addEventListener("click", () => { select.value = task; show(); select.focus(); });
    return button;
  };
  const neighbours = (heading, pairs) => tableOf(heading, ["task", "family", "cosine"],
    pairs.map(([task, cosine]) => {
      const bar = element("span", "", { class: cosine < 0 ? "bar negative" : "bar",
        style: `width:${Math.min(100, Math.abs(cosine) * 100)}%` });
      return [go(task), data.families[task], [cosine.toFixed(3), bar]];
    }));

  function show() {
    const task = Number(select.value);
    const groups = Object.entries(data.partitions).map(([name, assigned]) => {
      const group = assigned[task];
      const members = assigned.flatMap((other, index) => (other === group ? [index] : []));
      const others = members.filter((index) => index !== task).map((index) => data.tasks[index]);
      const fold = element("details", [element("summary", `${members.length} tasks`), others.join(", ")]);
      return [name, `${group} of ${Math.max(...assigned) + 1}`, fold];
    });
    shown.replaceChildren(
      tableOf(`${data.tasks[task]}: ${data.families[task]}, ${data.num_examples[task]} examples`,
        ["partition", "group", "together with"], groups),
      neighbours("Most similar gradients", data.similar[task]),
      neighbours("Most conflicting gradients", data.conflicting[task]));
  }
  select.addEventListener("change", show);
  show();
}

// what is folded on the screen is unfolded on paper
addEventListener("beforeprint", () => {
  for (const fold of document.querySelectorAll("details:not([open])")) {
    fold.dataset.folded = "";
    fold.open = true;
  }
});
addEventListener("afterprint", () => {
  for (const fold of document.querySelectorAll("details[data-folded]")) {
    delete fold.dataset.folded;
    fold.open = false;
  }
});
