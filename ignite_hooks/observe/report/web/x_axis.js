// The horizontal axis, which all charts share.

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
