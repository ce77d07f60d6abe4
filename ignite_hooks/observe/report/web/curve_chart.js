// The chart of a panel.

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
    const place = placeOf(nearest.curve, nearest.index);
    // Other runs were at this step, say, after another time.
    const where = shownRuns().length === 1 ? placeText(place) : placeTexts(place)[chosen.x];
    return { x: nearest.x, where, rows, beads };
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
