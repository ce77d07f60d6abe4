// Shows the values at a place of a chart.

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
