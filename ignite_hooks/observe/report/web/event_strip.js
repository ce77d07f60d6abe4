// The events of the runs, on the axis of the charts.

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
