// What readers do in a chart with a mouse, a finger and keys: they read values, and zoom.

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
