// What readers have chosen. It is kept in the address, so that a reload does not lose it.

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
