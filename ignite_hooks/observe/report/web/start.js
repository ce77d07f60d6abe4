// Times, copies, reloads and printing; then the start of all that the page does.

function showTimes() {
  const format = new Intl.DateTimeFormat("en", {
    year: "numeric",
    month: "short",
    day: "numeric",
    hour: "2-digit",
    minute: "2-digit",
    hourCycle: "h23",
    timeZoneName: "short",
  });
  for (const each of all("time")) {
    const time = new Date(each.dateTime);
    if (!Number.isNaN(time.getTime())) each.textContent = format.format(time);
  }
}

function showAges() {
  for (const each of all(".ago")) {
    const seconds = (Date.now() - new Date(each.dataset.time)) / 1000;
    if (!(seconds >= 0)) continue;
    each.textContent =
      seconds < 60
        ? ", just now"
        : `, ${seconds < 3600 ? `${Math.floor(seconds / 60)} min` : durationText(seconds)} ago`;
  }
}

function setUpCopies() {
  for (const button of all("button.copy")) {
    button.addEventListener("click", async () => {
      const text = one("pre", button.parentElement);
      try {
        await navigator.clipboard.writeText(text.textContent);
        button.textContent = "Copied";
        setTimeout(() => (button.textContent = "Copy"), 1500);
      } catch {
        getSelection().selectAllChildren(text); // for the reader to copy
      }
    });
  }
}

function setUpReload() {
  const box = one("#reload");
  if (!box) return;
  box.checked = chosen.reload;
  let timer = null;
  const arm = () => {
    clearTimeout(timer);
    if (box.checked) timer = setTimeout(() => location.reload(), 60_000);
  };
  box.addEventListener("change", () => {
    chosen.reload = box.checked;
    writeAddress();
    arm();
  });
  arm();
}

function setUpPrinting() {
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = all("details:not([open])");
    for (const each of opened) each.open = true;
  });
  addEventListener("afterprint", () => {
    for (const each of opened) each.open = false;
  });
}

document.documentElement.classList.add("has-script");
for (const each of all(".notice pre")) each.scrollTop = each.scrollHeight; // the error is last
readAddress();
showTimes();
showAges();
setInterval(showAges, 20_000);
setUpCopies();
setUpReload();
setUpCurves();
setUpPrinting();
