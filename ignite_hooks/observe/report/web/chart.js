// A chart: its drawing by Vega, and the marks of what a reader points at.

let charts = []; // all of the page
const expressionFunctions = { axisText, countText };
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
