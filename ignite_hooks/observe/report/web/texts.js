// Converts numbers, durations and positions to texts, by the same rules as page_text.py.

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

const countText = (count) => count.toLocaleString("en-US");

/** Returns the label of a tick, with the digits that it needs to differ from its neighbours. */
function axisText(value, range) {
  const digits = Math.ceil(Math.log10(Math.abs(value) / range)) + 2; // ticks are range / 10 apart
  if (!(digits > 3)) return numberText(value);
  const size = Math.abs(value);
  if (size < 1e-3 || size >= 1e6) return Number(value.toPrecision(digits)).toExponential().replace("+", "");
  return value.toLocaleString("en-US", { maximumSignificantDigits: digits });
}

/** Returns a position as a text for each of the horizontal axes. */
const placeTexts = (at) => ({
  step: `step ${countText(at.step)}`,
  epoch: `epoch ${numberText(Math.round(at.epoch * 100) / 100)}`,
  seconds: durationText(at.seconds),
});

const placeText = (at) => Object.values(placeTexts(at)).join(" · ");
