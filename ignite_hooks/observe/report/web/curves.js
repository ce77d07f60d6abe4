// Chooses what a chart shows: its curves, smoothed or not, the best value, and the range of y.

const MIN_SMOOTHED = 60; // points of a validation curve
const MIN_TRAVEL = 6; // how often a rough curve travels through its range, up and down
const MAX_FULL_RUNS = 3; // of more runs, faint lines and bands would hide the curves
const TINY = 1e-300; // the scales of Vega overflow at less, and at 1 / TINY
const MIN_RANGE = 1e-5; // of an axis, as a share of its values, which have six digits
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
    // The line enters and leaves the chart between two points.
    for (const [index, x] of [
      [first, low],
      [last - 1, high],
    ]) {
      const [before, after] = values.slice(index, index + 2);
      if (!(xs[index] < x && x < xs[index + 1]) || !drawable(before) || !drawable(after)) continue;
      include(before + ((x - xs[index]) / (xs[index + 1] - xs[index])) * (after - before));
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
  const isFlat = top - bottom < Math.max(TINY, MIN_RANGE * Math.abs(top));
  if (bottom > top) [bottom, top] = isLog ? [0.1, 1] : [0, 1];
  else if (isLog && isFlat) [bottom, top] = [bottom / 2, 2 * top];
  else if (isFlat) {
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
  const digits = Math.ceil(Math.log10(low / (high - low))) + 2;
  return [0.2, 0.5, 0.8].map((share) => Number((low * (high / low) ** share).toPrecision(digits)));
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
