"use strict";
// Sorting, filtering, the state of both in the address after #, colours, and charts drawn when they come into view.
(() => {
  const table = document.querySelector("table.sortable");
  const form = document.querySelector("form.filters");
  const read = () => new URLSearchParams(location.hash.includes("=") ? location.hash.slice(1) : "");
  let state = read();

  function keep(name, value) {
    if (value) state.set(name, value);
    else state.delete(name);
    history.replaceState(null, "", "#" + state);
    show();
  }

  function show() {
    if (table) sort();
    if (table && form) filter();
    for (const each of document.querySelectorAll("div[data-pair]"))
      each.hidden = Boolean(state.get("pair")) && each.dataset.pair !== state.get("pair");
  }

  // A cell's number, or its text in lower case; null if it is empty, which is last in either order.
  function valueOf(row, column) {
    const cell = row.cells[column];
    if ("v" in cell.dataset) return Number(cell.dataset.v);
    return cell.textContent.trim().toLowerCase() || null;
  }

  function compare(a, b) {
    if (typeof a === typeof b) return a < b ? -1 : a > b ? 1 : 0;
    return typeof a === "number" ? -1 : 1;
  }

  const rows = table ? [...table.tBodies[0].rows] : [];
  const heads = table ? [...table.tHead.rows[0].cells] : [];

  function sort() {
    const chosen = state.get("sort") || "";
    const down = chosen.startsWith("-");
    const column = heads.findIndex((head) => head.dataset.key === chosen.replace("-", ""));
    heads.forEach((head, index) => {
      const order = index !== column ? "none" : down ? "descending" : "ascending";
      head.setAttribute("aria-sort", order);
    });
    const ordered = [...rows];
    if (column >= 0)
      ordered.sort((first, second) => {
        const a = valueOf(first, column);
        const b = valueOf(second, column);
        if (a === null || b === null) return (a === null) - (b === null);
        return typeof a !== typeof b ? compare(a, b) : compare(a, b) * (down ? -1 : 1);
      });
    table.tBodies[0].append(...ordered);
  }

  function filter() {
    const fields = [...form.elements].filter((each) => each.name);
    for (const each of fields) each.value = state.get(each.name) || "";
    const search = (state.get("q") || "").toLowerCase();
    let shown = 0;
    for (const row of rows) {
      const fits = fields.every((each) => each.name === "q" || !each.value || row.dataset[each.name] === each.value);
      row.hidden = !(fits && row.cells[0].textContent.toLowerCase().includes(search));
      shown += !row.hidden;
    }
    document.querySelector(".count").textContent = `${shown} of ${rows.length} rows`;
  }

  for (const head of heads) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const key = head.dataset.key;
      const order = head.classList.contains("number") ? ["-" + key, key] : [key, "-" + key];
      keep("sort", order[(order.indexOf(state.get("sort")) + 1) % 2]);
    });
  }
  if (form) {
    form.hidden = false;
    form.addEventListener("input", (event) => keep(event.target.name, event.target.value));
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("reset", (event) => {
      event.preventDefault();
      for (const name of [...state.keys()]) if (name !== "at") state.delete(name);
      keep("sort", "");
    });
  }

  // Links within the page leave the state where it is.
  function go(id) {
    const target = document.getElementById(id);
    if (!target) return;
    target.tabIndex = -1;
    target.focus({ preventScroll: true });
    target.scrollIntoView();
  }
  for (const link of document.querySelectorAll("nav.sections a"))
    link.addEventListener("click", (event) => {
      event.preventDefault();
      keep("at", link.hash.slice(1));
      go(link.hash.slice(1));
    });
  addEventListener("hashchange", () => {
    if (!location.hash.includes("=") && location.hash) return;
    state = read();
    show();
  });

  function draw(figure) {
    const spec = JSON.parse(figure.querySelector("script").textContent);
    for (const [name, [columns, ...values]] of Object.entries(spec.datasets))
      spec.datasets[name] = values.map((row) => Object.fromEntries(columns.map((each, index) => [each, row[index]])));
    const place = figure.querySelector(".chart");
    const config = {
      background: null,
      font: "system-ui, sans-serif",
      view: { stroke: null },
      axis: { labelFontSize: 11, titleFontSize: 12, titleFontWeight: "normal", labelLimit: 220 },
      legend: { columns: 2, labelFontSize: 11, titleFontWeight: "normal", labelLimit: 160 },
    };
    const options = { mode: "vega-lite", renderer: "svg", actions: false, config };
    vegaEmbed(place, spec, options).then(() => place.setAttribute("data-drawn", ""), (error) => console.error(error));
  }
  const seen = new IntersectionObserver(
    (entries) => {
      for (const entry of entries)
        if (entry.isIntersecting) {
          seen.unobserve(entry.target);
          draw(entry.target);
        }
    },
    { rootMargin: "400px" },
  );
  for (const figure of document.querySelectorAll("figure.plot")) seen.observe(figure);

  // Colours are the reader's choice, or the system's; a browser that keeps nothing for files forgets it with the page.
  const theme = document.getElementById("theme");
  theme.value = document.documentElement.dataset.theme;
  theme.parentElement.hidden = false;
  theme.addEventListener("change", () => {
    document.documentElement.dataset.theme = theme.value;
    try {
      localStorage.setItem("kdbench-theme", theme.value);
    } catch (error) {
      console.info(error.message);
    }
  });

  show();
  if (state.get("at")) go(state.get("at"));
})();
