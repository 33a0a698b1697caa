"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const root = document.documentElement;
  const plots = Object.keys(figures).map((id) => document.getElementById(id));
  const touch = matchMedia("(pointer: coarse)").matches; // where dragging on a figure scrolls the page

  // The page's colours as a plotly template.
  function template() {
    const colours = getComputedStyle(root);
    const of = (name) => colours.getPropertyValue(name).trim();
    const line = of("--line");
    const axis = { gridcolor: line, linecolor: line, zerolinecolor: line, title: { font: { size: 13 } } };
    return {
      data: { bar: [{ error_x: { color: of("--text") } }] },
      layout: {
        font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: of("--text") },
        paper_bgcolor: "rgba(0,0,0,0)",
        plot_bgcolor: "rgba(0,0,0,0)",
        xaxis: axis,
        yaxis: axis,
        hoverlabel: { bgcolor: of("--card"), bordercolor: of("--line"), font: { color: of("--text") } },
        modebar: { bgcolor: "rgba(0,0,0,0)", color: of("--quiet"), activecolor: of("--text") },
        dragmode: touch ? false : "zoom",
      },
    };
  }

  const config = {
    displaylogo: false,
    responsive: true,
    displayModeBar: touch ? false : "hover",
    modeBarButtonsToRemove: ["sendChartToCloud", "select2d", "lasso2d"], // sendChartToCloud would upload the figure
    plotlyServerURL: "",
  };

  function draw() {
    for (const plot of plots) {
      const { data, layout } = figures[plot.id];
      Plotly.newPlot(plot, data, { ...layout, template: template() }, config);
    }
  }

  const recolour = () => plots.forEach((plot) => Plotly.relayout(plot, { template: template() }));

  // Print in light mode, with figures as wide as the sheet.
  addEventListener("beforeprint", () => {
    root.classList.add("paper");
    plots.forEach((plot) => Plotly.relayout(plot, { template: template(), width: plot.clientWidth }));
  });
  addEventListener("afterprint", () => {
    root.classList.remove("paper");
    plots.forEach((plot) => Plotly.relayout(plot, { template: template(), width: null, autosize: true }));
  });

  // On a phone, cells after the first columns stand below them with the header as a label: see report.css.
  const FIRST = 3;
  for (const table of document.querySelectorAll(".scroll > table:not(.confusion)")) {
    if (!table.tHead) continue;
    const titles = [...table.tHead.rows[0].cells].map((cell) => cell.textContent);
    table.classList.add("stacked");
    for (const row of table.rows) {
      [...row.cells].slice(FIRST).forEach((cell, index) => {
        cell.classList.add("more");
        cell.dataset.label = titles[FIRST + index];
      });
    }
  }

  // Boxes that scroll can be reached and scrolled by keyboard; Safari does not provide that by itself.
  const headings = [...document.querySelectorAll("h1, h2, h3")];
  const titleOf = (box) =>
    box.querySelector("caption") ??
    headings.findLast((each) => each.compareDocumentPosition(box) & Node.DOCUMENT_POSITION_FOLLOWING);
  const reach = new ResizeObserver((entries) => {
    for (const { target: box } of entries) {
      if (box.scrollWidth > box.clientWidth) {
        box.tabIndex = 0;
        box.setAttribute("role", "region");
        box.setAttribute("aria-label", titleOf(box).textContent);
      } else {
        for (const name of ["tabindex", "role", "aria-label"]) box.removeAttribute(name);
      }
    }
  });

  draw();
  document.querySelectorAll(".scroll, .wide, pre").forEach((box) => reach.observe(box));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolour);
})();
