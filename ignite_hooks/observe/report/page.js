"use strict";
// Draws the charts of a report, and reacts to its controls. The tables are in the HTML.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const isOneRun = data.runs.length === 1;
  const one = (selector, within = document) => within.querySelector(selector);
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  document.documentElement.classList.add("has-script");

  // ---- Texts. page_text.py writes numbers and durations by the same rules.

  function numberText(value) {
    if (value === null || value === undefined) return "–";
    const size = Math.abs(value);
    if (size >= 1e6 || (size > 0 && size < 1e-3)) {
      const [digits, exponent] = value.toExponential(2).split("e");
      return `${Number(digits)}e${Number(exponent)}`;
    }
    const rounded = Number(size >= 1000 ? value.toFixed(0) : value.toPrecision(4));
    return rounded.toLocaleString("en-US", { maximumFractionDigits: 12 });
  }

  function durationText(seconds) {
    const two = (number) => String(number).padStart(2, "0");
    if (seconds < 9.95) return `${Math.max(0, seconds).toFixed(1)} s`;
    const total = Math.round(seconds);
    if (total < 60) return `${total} s`;
    if (total < 3600) return `${Math.floor(total / 60)} min ${two(total % 60)} s`;
    const minutes = Math.floor(total / 60);
    if (minutes < 1440) return `${Math.floor(minutes / 60)} h ${two(minutes % 60)} min`;
    return `${Math.floor(minutes / 1440)} d ${Math.floor(minutes / 60) % 24} h`;
  }

  const placeText = (at) =>
    `step ${numberText(at.step)} · epoch ${numberText(Math.round(at.epoch * 100) / 100)} · ${durationText(at.seconds)}`;

  // ---- What readers have chosen. It is kept in the address, so that a reload does not lose it.

  const SMOOTHINGS = [0, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1]; // shares of the run
  const chosen = {
    x: "step",
    smoothing: 3,
    zoom: null,
    filter: "",
    hidden: new Set(),
    log: new Set(),
    reload: false,
  };

  function readAddress() {
    const found = new URLSearchParams(location.hash.slice(1));
    if (["step", "epoch", "seconds"].includes(found.get("x"))) chosen.x = found.get("x");
    const smoothing = Number(found.get("smoothing") ?? chosen.smoothing);
    if (smoothing in SMOOTHINGS) chosen.smoothing = smoothing;
    const zoom = (found.get("zoom") ?? "").split("~").map((each) => Number(each) / unitOfX());
    chosen.zoom = zoom.length === 2 && zoom.every(Number.isFinite) && zoom[0] < zoom[1] ? zoom : null;
    chosen.filter = found.get("show") ?? "";
    const numbers = (name) => new Set((found.get(name) || null)?.split(".").map(Number));
    if (!isOneRun) chosen.hidden = numbers("hidden");
    chosen.log = numbers("log");
    chosen.reload = found.has("reload");
  }

  function writeAddress() {
    const kept = new URLSearchParams({ x: chosen.x, smoothing: chosen.smoothing });
    if (chosen.zoom)
      kept.set("zoom", chosen.zoom.map((each) => Number((each * unitOfX()).toPrecision(7))).join("~"));
    if (chosen.filter) kept.set("show", chosen.filter);
    if (chosen.hidden.size) kept.set("hidden", [...chosen.hidden].join("."));
    if (chosen.log.size) kept.set("log", [...chosen.log].join("."));
    if (chosen.reload) kept.set("reload", "1");
    try {
      history.replaceState(null, "", `#${kept}`);
    } catch {
      // Previews show pages in frames that have no address.
    }
  }

  // ---- The horizontal axis, which all charts share.

  const curvesOf = data.runs.map((run) => new Map(run.curves.map((curve) => [curve.metric, curve])));
  const isShown = (run) => !chosen.hidden.has(run);
  const shownRuns = () => data.runs.map((_, run) => run).filter(isShown);
  const longestSeconds = Math.max(
    0,
    ...data.runs.flatMap((run) => run.curves.map((curve) => curve.seconds.at(-1) ?? 0)),
  );
  const [timeUnit, unitSeconds] =
    longestSeconds > 2 * 86400
      ? ["d", 86400]
      : longestSeconds > 7200
        ? ["h", 3600]
        : longestSeconds > 120
          ? ["min", 60]
          : ["s", 1];
  const xTitle = () => ({ step: "step", epoch: "epoch", seconds: `training time, ${timeUnit}` })[chosen.x];
  const unitOfX = () => (chosen.x === "seconds" ? unitSeconds : 1);
  const xOf = (at) => at[chosen.x] / unitOfX();

  function xsOf(curve) {
    if (chosen.x !== "seconds") return curve[chosen.x];
    curve.inUnit ??= curve.seconds.map((each) => each / unitSeconds);
    return curve.inUnit;
  }

  function rangeOf(run) {
    let [low, high] = [Infinity, -Infinity];
    const curves = data.runs[run].curves.map(xsOf);
    for (const xs of [...curves, data.runs[run].marks.map((mark) => xOf(mark.at))]) {
      for (const x of xs) {
        if (x < low) low = x;
        if (x > high) high = x;
      }
    }
    return [low, high];
  }

  let ends = []; // of each run
  let whole = [0, 1];

  function measureRuns() {
    const ranges = data.runs.map((_, run) => rangeOf(run));
    ends = ranges.map((each) => each[1]);
    let low = Math.min(...shownRuns().map((run) => ranges[run][0]));
    const high = Math.max(...shownRuns().map((run) => ranges[run][1]));
    if (low > 0 && low < 0.1 * high) low = 0;
    if (!(low <= high)) whole = [0, 1];
    else whole = low < high ? [low, high] : [Math.min(0, low), Math.max(1, 2 * high)];
    if (chosen.zoom && !(chosen.zoom[0] < whole[1] && chosen.zoom[1] > whole[0])) chosen.zoom = null;
  }

  const range = () => chosen.zoom ?? whole;

  /** Returns the number of items of a sorted list that are less than a value. */
  function rank(sorted, value) {
    let [low, high] = [0, sorted.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (sorted[middle] < value) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  function nearestIndex(xs, x) {
    const after = rank(xs, x);
    if (after === xs.length) return after - 1;
    return after > 0 && x - xs[after - 1] <= xs[after] - x ? after - 1 : after;
  }

  // ---- Curves.

  const MIN_SMOOTHED = 60; // points of a validation curve
  const MIN_TRAVEL = 6; // how often a rough curve travels through its range, up and down
  const MAX_FULL_RUNS = 3; // of more runs, faint lines and bands would hide the curves
  const TINY = 1e-300; // the scales of Vega overflow at less, and at 1 / TINY
  const MAX_DOTS = 30; // a curve of so few points has a dot at each of them

  /** Returns whether smoothing shows more of a curve. A learning rate, say, would only be late. */
  function isRough(curve) {
    if (curve.mean.length < (curve.is_validation ? MIN_SMOOTHED : 3)) return false;
    if (curve.isRough === undefined) {
      const values = curve.mean.filter((each) => each !== null);
      let [low, high, travelled] = [Infinity, -Infinity, 0];
      values.forEach((value, index) => {
        low = Math.min(low, value);
        high = Math.max(high, value);
        travelled += index ? Math.abs(value - values[index - 1]) : 0;
      });
      curve.isRough = travelled > MIN_TRAVEL * (high - low);
    }
    return curve.isRough;
  }

  /** Returns the exponential average, in which a point weighs less with its distance in x. */
  function smoothed(curve) {
    const share = SMOOTHINGS[chosen.smoothing];
    if (share === 0 || !isRough(curve)) return curve.mean;
    const key = `${chosen.x} ${share}`;
    if (curve.smoothedBy !== key) {
      const xs = xsOf(curve);
      const length = share * (xs.at(-1) - xs[0]);
      let [sum, weights, before] = [0, 0, xs[0]];
      curve.smoothed = curve.mean.map((value, index) => {
        if (value === null) return null;
        const decay = length > 0 ? Math.exp(-(xs[index] - before) / length) : 0;
        const weight = curve.count?.[index] ?? 1;
        sum = sum * decay + weight * value;
        weights = weights * decay + weight;
        before = xs[index];
        return sum / weights;
      });
      curve.smoothedBy = key;
    }
    return curve.smoothed;
  }

  /** Returns what a chart draws of a panel: its curves in the runs that are shown. */
  function seriesOf(panel) {
    const found = [];
    for (const run of shownRuns()) {
      let [trainings, validations] = [0, 0];
      for (const metric of panel.metrics) {
        const curve = curvesOf[run].get(metric);
        if (!curve) continue;
        const number = curve.is_validation ? validations++ : trainings++;
        const color = isOneRun ? 2 * number + (curve.is_validation ? 1 : 0) : run;
        const dash = isOneRun || !curve.is_validation ? [1, 0] : number === 0 ? [5, 3] : [2, 2];
        found.push({ run, metric, curve, dash, color: `var(--s${(color % 8) + 1})` });
      }
    }
    return found;
  }

  /** Returns the name of a series where its chart, and its run, are known. */
  function nameOf(series, among) {
    const isPair =
      among.filter(
        (each) => each.run === series.run && each.curve.is_validation === series.curve.is_validation,
      ).length === 1;
    if (!isPair || among.every((each) => each.metric === series.metric)) return series.metric;
    return series.curve.is_validation ? "validation" : "training";
  }

  function bestOf(among) {
    const found = [];
    for (const isValidation of [true, false]) {
      for (const series of among) {
        if (series.curve.is_validation !== isValidation) continue;
        const summary = data.runs[series.run].summaries.find((each) => each.metric === series.metric);
        const extreme = summary?.best ? summary[summary.best] : null;
        if (extreme) found.push({ ...extreme, kind: summary.best, series });
      }
      if (found.length) break;
    }
    const sign = found[0]?.kind === "lowest" ? 1 : -1;
    return found.sort((a, b) => sign * (a.value - b.value))[0] ?? null;
  }

  function contentOf(panel, isLog) {
    const [low, high] = range();
    const series = seriesOf(panel);
    const content = {
      bands: [],
      raw: [],
      lines: [],
      dots: [],
      lost: [],
      best: [],
      rules: rulesIn(low, high),
    };
    const isFull = shownRuns().length <= MAX_FULL_RUNS;
    let [bottom, top] = [Infinity, -Infinity];
    const drawable = (value) => value !== null && Math.abs(value) < 1 / TINY && !(isLog && value < TINY);
    const include = (value) => {
      if (value < bottom) bottom = value;
      if (value > top) top = value;
    };
    series.forEach(({ curve, color, dash }, number) => {
      const xs = xsOf(curve);
      const values = smoothed(curve);
      const isSmoothed = values !== curve.mean;
      const first = Math.max(0, rank(xs, low) - 1);
      const last = Math.min(xs.length - 1, rank(xs, high));
      const hasDots = last - first < MAX_DOTS;
      for (let index = first; index <= last; index++) {
        const x = xs[index];
        const common = { x, curve: number, color, dash };
        const isInside = x >= low && x <= high;
        const y = drawable(values[index]) ? values[index] : null;
        content.lines.push({ ...common, y });
        if (isSmoothed && isFull)
          content.raw.push({ ...common, y: drawable(curve.mean[index]) ? curve.mean[index] : null });
        if (isFull && curve.low && drawable(curve.low[index]) && drawable(curve.high[index])) {
          content.bands.push({ ...common, y: curve.low[index], y2: curve.high[index] });
          if (isInside) [curve.low[index], curve.high[index]].forEach(include);
        }
        if (y === null) continue;
        const isAlone = !drawable(values[index - 1] ?? null) && !drawable(values[index + 1] ?? null);
        if ((hasDots || isAlone) && isInside) content.dots.push({ ...common, y });
        if (isInside) [y, isFull && drawable(curve.mean[index]) ? curve.mean[index] : y].forEach(include);
      }
      for (const index of curve.lost) {
        if (xs[index] >= low && xs[index] <= high) content.lost.push({ x: xs[index], color });
      }
    });
    const best = bestOf(series);
    if (best && drawable(best.value) && xOf(best.at) >= low && xOf(best.at) <= high) {
      const x = xOf(best.at);
      const share = (x - low) / (high - low);
      const align = share > 0.75 ? "right" : share < 0.25 ? "left" : "center";
      const text = `${best.kind} ${numberText(best.value)}`;
      content.best.push({
        x,
        y: best.value,
        color: best.series.color,
        text,
        align,
        isLow: best.kind === "lowest",
      });
      include(best.value);
    }
    // The margins have room for the label of the best value, which stands outside of the curve.
    const isLabelled = (kind) => content.best.some((each) => each.isLow === (kind === "lowest"));
    const [below, above] = [isLabelled("lowest") ? 0.18 : 0.08, isLabelled("highest") ? 0.18 : 0.08];
    if (bottom > top) [bottom, top] = isLog ? [0.1, 1] : [0, 1];
    else if (isLog && bottom === top) [bottom, top] = [bottom / 2, 2 * top];
    else if (top - bottom < TINY) {
      const margin = Math.abs(bottom) > TINY ? Math.abs(bottom) / 2 : 1;
      [bottom, top] = [bottom - margin, top + margin];
    }
    if (isLog) {
      const ratio = top / bottom;
      return { ...content, series, yRange: [bottom / ratio ** below, top * ratio ** above] };
    }
    return { ...content, series, yRange: [bottom - below * (top - bottom), top + above * (top - bottom)] };
  }

  /** Returns the ticks of a logarithmic axis: powers of ten, with 2 and 5 between them if few. */
  function logTicks(low, high) {
    if (low <= 0) return [];
    const [first, last] = [Math.floor(Math.log10(low)), Math.ceil(Math.log10(high))];
    const every = Math.ceil((last - first) / 6);
    const found = [];
    for (let power = first; power <= last; power += every) {
      for (const digit of last - first > 2 ? [1] : [1, 2, 5]) found.push(Number(`${digit}e${power}`));
    }
    const inside = found.filter((each) => each >= low && each <= high);
    if (inside.length > 1) return inside;
    return [0.2, 0.5, 0.8].map((share) => Number((low * (high / low) ** share).toPrecision(2)));
  }

  function rulesIn(low, high) {
    const rules = [];
    for (const run of shownRuns()) {
      for (const { kind, at } of data.runs[run].marks) {
        const x = xOf(at);
        const isEnd = kind === "stop" && x >= ends[run];
        if (!["resume", "stop", "error"].includes(kind) || isEnd || x < low || x > high) continue;
        const color = isOneRun ? MARK_COLORS[kind] : `var(--s${(run % 8) + 1})`;
        rules.push({ x, color, dash: kind === "error" ? [1, 0] : [2, 3] });
      }
    }
    return rules;
  }

  // ---- The specifications of the charts, in Vega-Lite. Colours are variables of page.css, so a
  // change between light and dark needs no new drawing.

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
    const axis = {
      title: xTitle(),
      ...(chosen.x === "step" ? { tickMinStep: 1 } : {}),
      titleAnchor: "end",
      titlePadding: 4,
      grid: false,
      tickCount: { expr: "max(2, width / 70)" },
      labelExpr: "axisText(datum.value)",
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
      labelExpr: "axisText(datum.value)",
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

  // ---- Charts.

  const expressionFunctions = { axisText: numberText };
  const compiled = new Map(); // Vega specifications, because compiling takes longer than drawing

  async function embed(element, key, spec) {
    const known = compiled.get(key);
    const options = {
      mode: known ? "vega" : "vega-lite",
      renderer: "svg",
      actions: false,
      hover: false,
      tooltip: false,
      defaultStyle: false,
      config: known ? undefined : config,
      expressionFunctions,
    };
    const result = await vegaEmbed(element, known ?? spec, options);
    if (!known) compiled.set(key, result.vgSpec);
    return result;
  }

  class Chart {
    constructor(figure) {
      this.figure = figure;
      this.element = one(".chart", figure);
      this.canvas = this.add("canvas");
      this.cursor = this.add("cursor");
      this.brush = this.add("brush");
      this.beads = [];
      this.isStale = true;
      this.isNear = false;
      this.drawing = 0;
      this.key = null;
      this.content = null;
    }

    add(name) {
      const element = document.createElement("div");
      element.className = name;
      return this.element.appendChild(element);
    }

    get plotWidth() {
      return Math.max(60, this.element.clientWidth - this.size.left - this.size.right);
    }

    invalidate() {
      this.isStale = true;
      if (this.isNear) return this.draw();
    }

    async draw() {
      this.isStale = false;
      this.element.ariaBusy = String(++this.drawing > 0);
      await this.drawNow();
      this.element.ariaBusy = String(--this.drawing > 0);
    }

    async drawNow() {
      const key = this.variant();
      if (this.key !== key) {
        this.key = key;
        const spec = this.spec();
        this.embedded = Promise.resolve(this.embedded).then((before) => {
          before?.finalize();
          return embed(this.canvas, key, spec);
        });
      }
      const { view } = await this.embedded;
      if (this.key !== key) return; // another drawing has begun
      this.update();
      const [low, high] = range();
      view.signal("xLow", low).signal("xHigh", high);
      if (this.content.yRange) {
        const [bottom, top] = this.content.yRange;
        view.signal("yLow", bottom).signal("yHigh", top).signal("yTicks", logTicks(bottom, top));
      }
      for (const name of this.dataSets) view.data(name, this.content[name]);
      view.width(this.plotWidth);
      await view.runAsync();
    }

    xAt(clientX) {
      const [low, high] = range();
      const share = (clientX - this.element.getBoundingClientRect().left - this.size.left) / this.plotWidth;
      return low + Math.min(1, Math.max(0, share)) * (high - low);
    }

    leftOf(x) {
      const [low, high] = range();
      return this.size.left + ((x - low) / (high - low)) * this.plotWidth;
    }

    showCursor(x) {
      const [low, high] = range();
      const isInside = x !== null && x >= low && x <= high && this.content;
      this.cursor.style.display = isInside ? "block" : "none";
      if (isInside)
        Object.assign(this.cursor.style, {
          left: `${this.leftOf(x)}px`,
          top: `${this.size.top}px`,
          height: `${this.plotHeight}px`,
        });
    }

    showBeads(points) {
      this.beads.forEach((each) => each.remove());
      this.beads = points.map(({ x, y, color }) => {
        const bead = this.add("bead");
        Object.assign(bead.style, {
          left: `${this.leftOf(x)}px`,
          top: `${this.topOf(y)}px`,
          background: color,
        });
        return bead;
      });
    }
  }

  class CurveChart extends Chart {
    constructor(figure) {
      super(figure);
      this.number = Number(figure.dataset.panel);
      this.panel = data.panels[this.number];
      this.size = PLOT;
      this.plotHeight = PLOT.height;
      this.dataSets = ["bands", "raw", "lines", "dots", "lost", "best", "rules"];
      this.button = one(".log", figure);
      this.button.addEventListener("click", () => {
        if (!chosen.log.delete(this.number)) chosen.log.add(this.number);
        writeAddress();
        this.invalidate();
      });
    }

    get isLog() {
      return chosen.log.has(this.number);
    }

    variant() {
      return `${chosen.x} ${this.isLog}`;
    }

    spec() {
      return curveSpec(this.isLog);
    }

    topOf(y) {
      const [low, high] = this.content.yRange.map((each) => (this.isLog ? Math.log(each) : each));
      return PLOT.top + ((high - (this.isLog ? Math.log(y) : y)) / (high - low)) * PLOT.height;
    }

    update() {
      this.content = contentOf(this.panel, this.isLog);
      this.button.setAttribute("aria-pressed", this.isLog);
      this.showLast();
    }

    /** Shows the last values beside the title. If there are several runs, the tables have them. */
    showLast() {
      const { series } = this.content;
      const isPair = new Set(series.map((each) => each.curve.is_validation)).size === series.length;
      const texts = (isOneRun ? series : []).map(({ curve, color, metric }) => {
        const span = document.createElement("span");
        const value = numberText(curve.mean.findLast((each) => each !== null));
        span.style.color = color;
        span.title = `last value of ${metric}`;
        span.textContent = isPair ? value : `${metric} ${value}`;
        return span;
      });
      one(".last", this.figure).replaceChildren(...texts);
    }

    /** Returns the point of a curve that is nearest to a place, and the values of all there. */
    look(x) {
      const series = this.content.series;
      const [low, high] = range();
      let nearest = null;
      for (const { curve } of series) {
        const xs = xsOf(curve);
        if (!xs.length) continue;
        const index = nearestIndex(xs, x);
        const isInside = xs[index] >= low && xs[index] <= high;
        if (isInside && (nearest === null || Math.abs(xs[index] - x) < Math.abs(nearest.x - x)))
          nearest = { x: xs[index], curve, index };
      }
      if (nearest === null) return null;
      const placeOf = (curve, index) => ({
        step: curve.step[index],
        epoch: curve.epoch[index],
        seconds: curve.seconds[index],
      });
      const isFull = shownRuns().length <= MAX_FULL_RUNS; // else the smoothed curve alone is drawn
      const rows = [];
      const beads = [];
      for (const each of series) {
        const xs = xsOf(each.curve);
        if (!xs.length) continue;
        const index = nearestIndex(xs, nearest.x);
        const value = isFull ? each.curve.mean[index] : smoothed(each.curve)[index];
        const isRange = isFull && (each.curve.count?.[index] ?? 1) > 1 && each.curve.low?.[index] !== null;
        let name = nameOf(each, series);
        if (!isOneRun)
          name = `${data.runs[each.run].label}${series.some((other) => other.metric !== each.metric) ? `, ${name}` : ""}`;
        if (Math.abs(xs[index] - nearest.x) > 0.005 * (high - low))
          name += `, at ${chosen.x === "seconds" ? "" : `${chosen.x} `}${numberText(xs[index])}${chosen.x === "seconds" ? ` ${timeUnit}` : ""}`;
        const text = value === null ? "not finite" : numberText(value);
        rows.push({
          ...each,
          name,
          text,
          more: isRange
            ? `${numberText(each.curve.low[index])} to ${numberText(each.curve.high[index])}`
            : "",
        });
        if (value !== null && !(this.isLog && value <= 0) && xs[index] >= low && xs[index] <= high)
          beads.push({ x: xs[index], y: value, color: each.color });
      }
      return { x: nearest.x, where: placeText(placeOf(nearest.curve, nearest.index)), rows, beads };
    }

    /** Returns the x of the next point of any curve in a direction. */
    next(x, direction) {
      const found = this.content.series.flatMap(({ curve }) => {
        const xs = xsOf(curve);
        if (x === null) return [xs[direction > 0 ? 0 : xs.length - 1]];
        const index = direction > 0 ? rank(xs, x + 1e-12 * Math.abs(x) + Number.MIN_VALUE) : rank(xs, x) - 1;
        return xs[index] === x ? [xs[index + direction]] : [xs[index]];
      });
      const inside = found.filter((each) => each !== undefined && each >= range()[0] && each <= range()[1]);
      return inside.length ? (direction > 0 ? Math.min(...inside) : Math.max(...inside)) : x;
    }
  }

  /** Returns the name of a run beside its row. The number keeps runs of one name apart. */
  const rowName = (run) => `${run + 1}  ${data.runs[run].label}`;
  const MARK_COLORS = {
    validation: "var(--s2)",
    checkpoint: "var(--s3)",
    skip: "var(--s4)",
    resume: "var(--s1)",
    stop: "var(--s7)",
    error: "var(--bad)",
  };
  const MARK_NAMES = {
    validation: "validation",
    checkpoint: "checkpoint",
    skip: "skipped step",
    stop: "stop",
    resume: "resume",
    error: "error",
  };

  /** The events of a run, with a row for each kind; of several runs, with a row for each run. */
  class Strip extends Chart {
    constructor(figure) {
      super(figure);
      this.size = { ...STRIP, left: isOneRun ? STRIP.left : 130 };
      this.dataSets = ["marks"];
      // Several runs have too many validations to tell anything in one row.
      const isDrawn = ({ kind }) => isOneRun || kind !== "validation";
      const kinds = Object.keys(MARK_NAMES).filter((kind) =>
        data.runs.some((run) => run.marks.some((mark) => mark.kind === kind && isDrawn(mark))),
      );
      this.rowOf = (mark, run) => (isOneRun ? MARK_NAMES[mark.kind] : rowName(run));
      this.rows = isOneRun ? kinds.map((kind) => MARK_NAMES[kind]) : data.runs.map((_, run) => rowName(run));
      this.marks = data.runs.map((run) => run.marks.filter(isDrawn));
      this.plotHeight = STRIP.row * this.rows.length;
      this.element.style.height = `${this.plotHeight + STRIP.top + STRIP.bottom}px`;
      this.figure.hidden = !kinds.length;
      if (!isOneRun)
        one(".legend", figure).append(
          ...kinds.map((kind) => legendItem({ color: MARK_COLORS[kind], dash: [1, 0] }, MARK_NAMES[kind])),
        );
    }

    variant() {
      return `events ${chosen.x}`;
    }

    spec() {
      return stripSpec(this.size, this.rows);
    }

    topOf(row) {
      return STRIP.top + (this.rows.indexOf(row) + 0.5) * STRIP.row;
    }

    update() {
      const [low, high] = range();
      const marks = shownRuns().flatMap((run) =>
        this.marks[run].map((mark) => ({
          mark,
          run,
          x: xOf(mark.at),
          row: this.rowOf(mark, run),
          color: MARK_COLORS[mark.kind],
        })),
      );
      this.content = { marks: marks.filter(({ x }) => x >= low && x <= high) };
    }

    look(x, clientY) {
      const { marks } = this.content;
      if (!marks.length) return null;
      const row =
        clientY === undefined
          ? null
          : this.rows[
              Math.floor((clientY - this.element.getBoundingClientRect().top - STRIP.top) / STRIP.row)
            ];
      const among = marks.some((each) => each.row === row) ? marks.filter((each) => each.row === row) : marks;
      const nearest = among.reduce((a, b) => (Math.abs(b.x - x) < Math.abs(a.x - x) ? b : a));
      const same = among.filter((each) => each.x === nearest.x).slice(0, 12);
      const rows = same.map(({ mark, run, color }) => ({
        color,
        dash: [1, 0],
        text: "",
        more: "",
        name: `${isOneRun ? "" : `${data.runs[run].label}: `}${mark.text || MARK_NAMES[mark.kind]}${mark.count > 1 ? ` (${numberText(mark.count)} in a row)` : ""}`,
      }));
      return {
        x: nearest.x,
        where: placeText(nearest.mark.at),
        rows,
        beads: same.map((each) => ({ x: each.x, y: each.row, color: each.color })),
      };
    }

    next(x, direction) {
      const xs = this.content.marks.map((each) => each.x).sort((a, b) => direction * (a - b));
      return xs.find((each) => x === null || direction * (each - x) > 0) ?? x;
    }
  }

  // ---- What readers do with a chart.

  let charts = [];
  const tooltip = document.getElementById("tooltip");

  function swatch({ color, dash }) {
    const line = document.createElement("span");
    line.className = dash[1] ? "line dashed" : "line";
    line.style.color = color;
    return line;
  }

  function legendItem(style, text) {
    const span = document.createElement("span");
    span.append(swatch(style), text);
    return span;
  }

  function showTooltip(chart, found) {
    const where = document.createElement("div");
    where.className = "where";
    where.textContent = found.where;
    const table = document.createElement("table");
    for (const each of found.rows) {
      const row = table.insertRow();
      row.insertCell().append(swatch(each));
      row.insertCell().textContent = each.name;
      const value = row.insertCell();
      value.className = "number";
      value.textContent = each.text;
      const more = row.insertCell();
      more.className = "number soft";
      more.textContent = each.more;
    }
    tooltip.replaceChildren(where, table);
    tooltip.hidden = false;
    const box = tooltip.getBoundingClientRect();
    const left = chart.element.getBoundingClientRect().left + chart.leftOf(found.x);
    // Below the chart, or else above it, because the curves are to be seen.
    const frame = chart.element.getBoundingClientRect();
    const below = frame.top + chart.size.top + chart.plotHeight + 6;
    const isAbove = below + box.height > innerHeight - 8 && frame.top > box.height;
    tooltip.style.left = `${Math.max(8, Math.min(left - box.width / 2, innerWidth - box.width - 8))}px`;
    tooltip.style.top = `${isAbove ? frame.top - box.height : below}px`;
  }

  function leave() {
    tooltip.hidden = true;
    for (const chart of charts) {
      chart.showCursor(null);
      chart.showBeads([]);
    }
  }

  /** Shows the values of a chart at a place, and the place in the other charts. */
  function point(chart, x, clientY) {
    const found = chart.content && chart.look(x, clientY);
    leave();
    if (!found) return null;
    for (const each of charts) if (each.isNear) each.showCursor(found.x);
    chart.showBeads(found.beads);
    showTooltip(chart, found);
    return found.x;
  }

  function zoomTo(low, high) {
    low = Math.max(whole[0], low);
    high = Math.min(whole[1], high);
    if (!(high - low > 1e-9 * (whole[1] - whole[0]))) return;
    chosen.zoom = low <= whole[0] && high >= whole[1] ? null : [low, high];
    changed();
  }

  function zoomBy(factor, x) {
    const [low, high] = range();
    zoomTo(x - (x - low) * factor, x + (high - x) * factor);
  }

  function showAll() {
    chosen.zoom = null;
    changed();
  }

  function listen(chart) {
    const { element, brush } = chart;
    let start = null; // of a drag, in pixels
    let at = null; // of the cursor, in x; for keys
    const drawBrush = (from, to) => {
      const offset = element.getBoundingClientRect().left;
      const clip = (clientX) =>
        Math.min(chart.size.left + chart.plotWidth, Math.max(chart.size.left, clientX - offset));
      const [left, right] = [clip(Math.min(from, to)), clip(Math.max(from, to))];
      Object.assign(brush.style, {
        display: "block",
        left: `${left}px`,
        width: `${right - left}px`,
        top: `${chart.size.top}px`,
        height: `${chart.plotHeight}px`,
      });
    };
    element.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      start = event.clientX;
      element.setPointerCapture(event.pointerId);
    });
    element.addEventListener("pointermove", (event) => {
      if (start !== null && Math.abs(event.clientX - start) > 4) {
        leave();
        drawBrush(start, event.clientX);
      } else {
        at = point(chart, chart.xAt(event.clientX), event.clientY);
      }
    });
    element.addEventListener("pointerup", (event) => {
      brush.style.display = "none";
      if (start !== null && Math.abs(event.clientX - start) > 4) {
        const [low, high] = [start, event.clientX].map((each) => chart.xAt(each)).sort((a, b) => a - b);
        zoomTo(low, high);
      } else {
        at = point(chart, chart.xAt(event.clientX), event.clientY);
      }
      start = null;
    });
    element.addEventListener("pointercancel", () => {
      start = null;
      brush.style.display = "none";
    });
    element.addEventListener("pointerleave", (event) => {
      if (event.pointerType !== "touch") leave(); // a finger leaves when it is lifted
    });
    element.addEventListener("blur", leave);
    element.addEventListener("dblclick", showAll);
    element.addEventListener(
      "wheel",
      (event) => {
        if (!event.ctrlKey && !event.shiftKey) return; // the page scrolls
        event.preventDefault();
        zoomBy((event.deltaY || event.deltaX) < 0 ? 0.8 : 1.25, chart.xAt(event.clientX));
      },
      { passive: false },
    );
    element.addEventListener("keydown", (event) => {
      if (!chart.content || event.ctrlKey || event.metaKey || event.altKey) return;
      const middle = (range()[0] + range()[1]) / 2;
      if (event.key === "ArrowRight" || event.key === "ArrowLeft")
        at = point(chart, chart.next(at, event.key === "ArrowRight" ? 1 : -1));
      else if (event.key === "+") zoomBy(0.5, at ?? middle);
      else if (event.key === "-") zoomBy(2, at ?? middle);
      else if (event.key === "Escape" && chosen.zoom) showAll();
      else if (event.key === "Escape") leave();
      else return;
      event.preventDefault();
    });
  }

  // ---- Controls.

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

  // ---- Times, copies, reloads.

  function showTimes() {
    const format = new Intl.DateTimeFormat("en", {
      year: "numeric",
      month: "short",
      day: "numeric",
      hour: "2-digit",
      minute: "2-digit",
      hourCycle: "h23",
      timeZoneName: "short",
    });
    for (const each of all("time")) {
      const time = new Date(each.dateTime);
      if (!Number.isNaN(time.getTime())) each.textContent = format.format(time);
    }
  }

  function showAges() {
    for (const each of all(".ago")) {
      const seconds = (Date.now() - new Date(each.dataset.time)) / 1000;
      if (!(seconds >= 0)) continue;
      each.textContent =
        seconds < 60
          ? ", just now"
          : `, ${seconds < 3600 ? `${Math.floor(seconds / 60)} min` : durationText(seconds)} ago`;
    }
  }

  function setUpCopies() {
    for (const button of all("button.copy")) {
      button.addEventListener("click", async () => {
        const text = one("pre", button.parentElement);
        try {
          await navigator.clipboard.writeText(text.textContent);
          button.textContent = "Copied";
          setTimeout(() => (button.textContent = "Copy"), 1500);
        } catch {
          getSelection().selectAllChildren(text); // for the reader to copy
        }
      });
    }
  }

  function setUpReload() {
    const box = one("#reload");
    if (!box) return;
    box.checked = chosen.reload;
    let timer = null;
    const arm = () => {
      clearTimeout(timer);
      if (box.checked) timer = setTimeout(() => location.reload(), 60_000);
    };
    box.addEventListener("change", () => {
      chosen.reload = box.checked;
      writeAddress();
      arm();
    });
    arm();
  }

  function setUpPrinting() {
    let opened = [];
    addEventListener("beforeprint", () => {
      opened = all("details:not([open])");
      for (const each of opened) each.open = true;
    });
    addEventListener("afterprint", () => {
      for (const each of opened) each.open = false;
    });
  }

  for (const each of all(".notice pre")) each.scrollTop = each.scrollHeight; // the error is last
  readAddress();
  showTimes();
  showAges();
  setInterval(showAges, 20_000);
  setUpCopies();
  setUpReload();
  setUpCurves();
  setUpPrinting();
})();
