// Sets up the charts, and the controls above them.

function changed() {
  leave();
  writeAddress();
  measureRuns();
  showControls();
  for (const chart of charts) chart.invalidate();
}

function showControls() {
  for (const each of all("input[name=x]")) each.checked = each.value === chosen.x;
  const smoothing = one("#smoothing");
  const share = SMOOTHINGS[chosen.smoothing];
  smoothing.value = chosen.smoothing;
  one("#smoothing-text").value = share === 0 ? "none" : `${100 * share} %`;
  smoothing.setAttribute("aria-valuetext", share === 0 ? "none" : `${100 * share} % of the run`);
  one("#reset").hidden = chosen.zoom === null;
  for (const each of all(".shown")) each.checked = isShown(Number(each.value));
  const filter = one("#filter");
  if (filter && filter.value !== chosen.filter) filter.value = chosen.filter;
  const text = filter ? chosen.filter.trim().toLowerCase() : "";
  let count = 0;
  for (const section of all("section.charts")) {
    const cells = all(".cell", section);
    for (const cell of cells) {
      const panel = data.panels[Number(one(".panel", cell).dataset.panel)];
      cell.hidden = ![panel.title, ...panel.metrics].some((name) => name.toLowerCase().includes(text));
    }
    const found = cells.filter((cell) => !cell.hidden);
    found[0]?.prepend(one("h3", section));
    count += found.length;
  }
  one("#nothing").hidden = count > 0;
}

function fillLegend() {
  const curves = data.runs.flatMap((run) => run.curves);
  const kinds = [false, true].filter((kind) => curves.some((curve) => curve.is_validation === kind));
  if (kinds.length < 2) return;
  for (const isValidation of kinds) {
    const color = isOneRun ? `var(--s${isValidation ? 2 : 1})` : "var(--soft)";
    const style = { color, dash: isValidation && !isOneRun ? [5, 3] : [1, 0] };
    one("#legend").append(legendItem(style, isValidation ? "validation" : "training"));
  }
}

function setUpCurves() {
  if (!one("#curves")) return;
  measureRuns();
  charts = all("[data-panel]").map((figure) => new CurveChart(figure));
  charts.push(new Strip(one("#events")));
  fillLegend();
  showControls();
  const byElement = new Map(charts.map((chart) => [chart.element, chart]));
  const near = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        const chart = byElement.get(entry.target);
        chart.isNear = entry.isIntersecting;
        if (chart.isNear && chart.isStale) chart.draw();
      }
    },
    { rootMargin: "300px" },
  );
  const sizes = new ResizeObserver((entries) => {
    for (const entry of entries) {
      const chart = byElement.get(entry.target);
      if (chart.content && chart.drawnWidth !== chart.plotWidth) chart.invalidate();
      chart.drawnWidth = chart.plotWidth;
    }
  });
  for (const chart of charts) {
    near.observe(chart.element);
    sizes.observe(chart.element);
    listen(chart);
  }
  for (const each of all("input[name=x]")) {
    each.addEventListener("change", () => {
      chosen.x = each.value;
      chosen.zoom = null; // its numbers are those of the other axis
      changed();
    });
  }
  one("#smoothing").addEventListener("input", (event) => {
    chosen.smoothing = Number(event.target.value);
    changed();
  });
  one("#filter")?.addEventListener("input", (event) => {
    chosen.filter = event.target.value;
    changed();
  });
  one("#reset").addEventListener("click", showAll);
  for (const each of all(".shown")) {
    each.addEventListener("change", () => {
      if (each.checked) chosen.hidden.delete(Number(each.value));
      else chosen.hidden.add(Number(each.value));
      chosen.zoom = null;
      changed();
    });
  }
  addEventListener("scroll", leave, { passive: true }); // the values stay on the screen otherwise
  addEventListener("beforeprint", () => {
    for (const chart of charts) if (chart.isStale && !chart.figure.hidden) chart.draw();
  });
}
