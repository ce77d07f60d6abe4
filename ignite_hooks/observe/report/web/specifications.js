// The specifications of the charts, in Vega-Lite. Colours are variables of page.css, so a change
// between light and dark needs no new drawing.

const PLOT = { left: 52, right: 20, top: 10, bottom: 40, height: 160 };
const STRIP = { left: 86, right: 20, top: 4, bottom: 40, row: 22 };
const config = {
  background: "transparent",
  view: { stroke: null },
  font: getComputedStyle(document.body).fontFamily,
  axis: {
    labelColor: "var(--soft)",
    titleColor: "var(--soft)",
    gridColor: "var(--rule)",
    domainColor: "var(--rule)",
    tickColor: "var(--rule)",
    labelFontSize: 11,
    titleFontSize: 11,
    titleFontWeight: "normal",
    labelPadding: 5,
    tickSize: 4,
    labelFlush: false,
  },
};
const direct = (field) => ({ field, type: "nominal", scale: null, legend: null });

function xEncoding() {
  const isStep = chosen.x === "step";
  const axis = {
    title: xTitle(),
    titleAnchor: "end",
    titlePadding: 4,
    grid: false,
    tickCount: { expr: isStep ? "min(max(2, width / 70), xHigh - xLow)" : "max(2, width / 70)" },
    labelExpr: isStep ? "countText(datum.value)" : "axisText(datum.value, xHigh - xLow)",
    labelOverlap: true,
  };
  const scale = { domain: [{ expr: "xLow" }, { expr: "xHigh" }], nice: false, zero: false };
  return { field: "x", type: "quantitative", scale, axis };
}

function frame(size, height, layer) {
  return {
    params: [
      { name: "xLow", value: 0 },
      { name: "xHigh", value: 1 },
      { name: "yLow", value: 0.1 },
      { name: "yHigh", value: 1 },
      { name: "yTicks", value: [] },
    ],
    width: 300,
    height,
    padding: { left: size.left, right: size.right, top: size.top, bottom: size.bottom },
    autosize: { type: "none" },
    layer: layer.map((each) => ({ ...each, data: { name: each.data } })),
  };
}

function curveSpec(isLog) {
  const x = xEncoding();
  const ticks = isLog ? { values: { expr: "yTicks" } } : { tickCount: 4 };
  const axis = {
    title: null,
    domain: false,
    ticks: false,
    ...ticks,
    labelExpr: "axisText(datum.value, yHigh - yLow)",
    labelOverlap: true,
  };
  const scale = {
    domain: [{ expr: "yLow" }, { expr: "yHigh" }],
    nice: false,
    ...(isLog ? { type: "log" } : { zero: false }),
  };
  const y = { field: "y", type: "quantitative", scale, axis };
  const color = direct("color");
  const line = { x, y, color, strokeDash: direct("dash"), detail: { field: "curve" }, order: null };
  const label = {
    type: "text",
    fontSize: 11,
    fontWeight: 600,
    align: { expr: "datum.align" },
    dx: { expr: "datum.align == 'left' ? -4 : datum.align == 'right' ? 4 : 0" },
    dy: { expr: "datum.isLow ? 14 : -13" },
  };
  return frame(PLOT, PLOT.height, [
    {
      data: "rules",
      mark: { type: "rule", strokeWidth: 1.2, opacity: 0.75 },
      encoding: { x, color, strokeDash: direct("dash") },
    },
    {
      data: "bands",
      mark: { type: "area", opacity: 0.16, clip: true, line: false },
      encoding: { x, y, y2: { field: "y2" }, color, detail: { field: "curve" }, order: null },
    },
    { data: "raw", mark: { type: "line", strokeWidth: 1, opacity: 0.28, clip: true }, encoding: line },
    {
      data: "lines",
      mark: { type: "line", strokeWidth: 1.8, strokeJoin: "round", clip: true },
      encoding: line,
    },
    {
      data: "dots",
      mark: { type: "point", filled: true, size: 20, opacity: 1 },
      encoding: { x, y, color },
    },
    {
      data: "lost",
      mark: {
        type: "point",
        shape: "M-1,-1L1,1M-1,1L1,-1",
        size: 22,
        strokeWidth: 1.5,
        opacity: 1,
        yOffset: -6,
      },
      encoding: { x, y: { value: "height" }, color },
    },
    {
      data: "best",
      mark: { type: "point", size: 62, strokeWidth: 1.8, opacity: 1, fill: "var(--page)" },
      encoding: { x, y, color },
    },
    // The text is drawn twice, because it may stand on curves: first as a halo.
    ...[{ stroke: "var(--page)", strokeWidth: 4, strokeJoin: "round" }, { color: "var(--text)" }].map(
      (style) => ({
        data: "best",
        mark: { ...label, ...style },
        encoding: { x, y, text: { field: "text" } },
      }),
    ),
  ]);
}

function stripSpec(size, rows) {
  const axis = { title: null, domain: false, ticks: false, grid: true, labelLimit: size.left - 10 };
  const y = { field: "row", type: "nominal", scale: { domain: rows }, sort: null, axis };
  const mark = { type: "tick", orient: "vertical", thickness: 2, size: 13, opacity: 1 };
  return frame(size, STRIP.row * rows.length, [
    { data: "marks", mark, encoding: { x: xEncoding(), y, color: direct("color") } },
  ]);
}
