// The data of the page, and short names to find elements.

const data = JSON.parse(document.getElementById("data").textContent);
const isOneRun = data.runs.length === 1;
const curvesOf = data.runs.map((run) => new Map(run.curves.map((curve) => [curve.metric, curve])));
const one = (selector, within = document) => within.querySelector(selector);
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
