// Liveness and keys. Every page is complete without this file; it renders nothing by itself:
// the server sends HTML, this puts it in place.

const $ = (selector, root = document) => root.querySelector(selector);
const LINES_MAX = 5000; // rows kept in the page while a log is followed; the full log has all

// --- the run panel ----------------------------------------------------------------------------

const REGIONS = ["run-head", "run-approvals", "run-actions", "run-steps", "run-artifacts", "run-about"];

function fragment(html) {
  const template = document.createElement("template");
  template.innerHTML = html;
  return template.content;
}

// Replace what changed, and leave alone what a person is using: an open menu, a half-written comment.
function place(content) {
  for (const id of REGIONS) {
    const fresh = content.getElementById(id);
    const old = document.getElementById(id);
    if (!fresh || !old) continue;
    const version = fresh.dataset.version;
    if (version !== undefined && version === old.dataset.version) continue;
    if (id === "run-actions" && $("details[open]", old) && $("details", fresh)) continue;
    const focus = old.contains(document.activeElement) && document.activeElement;
    const href = focus && focus.getAttribute("href");
    const at = rowAt();
    old.replaceWith(fresh);
    if (href) $(`a[href="${CSS.escape(href)}"]`, fresh)?.focus();
    if (at && id === "run-steps") mark($(`tr[data-step="${CSS.escape(at)}"]`, fresh));
  }
}

function follow(run) {
  let state = $("#run-head").dataset.state;
  let said = $("#run-head").dataset.say;
  const source = new EventSource(run.dataset.live);
  source.addEventListener("panel", (event) => {
    place(fragment(event.data));
    const head = $("#run-head");
    if (head.dataset.say !== said) $("#announcer").textContent = said = head.dataset.say;
    if (head.dataset.state !== state) {
      state = head.dataset.state;
      $("#favicon").href = `/-/icon/${state}.svg`;
    }
    document.title = `${head.dataset.title} · Sluice`;
    tick();
  });
  source.addEventListener("log", (event) => {
    const fresh = fragment(event.data);
    const box = $("#run-log");
    if ($(".log-box", box)?.dataset.step === $(".log-box", fresh).dataset.step) return;
    box.replaceChildren(fresh);
    log();
  });
  source.addEventListener("end", () => source.close());
}

// --- the log ----------------------------------------------------------------------------------

let tail = null;
let follows = true;

function log() {
  tail?.close();
  tail = null;
  const box = $("#run-log .log-box");
  if (!box) return;
  const scroll = $(".log-scroll", box);
  const list = $(".log", box);
  const button = $(".log-follow", box);
  const long = scroll.scrollHeight > scroll.clientHeight + 1; // it scrolls itself, not the page
  const view = $(".log-page") ? document.scrollingElement : scroll;
  let unseen = 0;
  follows = !location.hash.startsWith("#L") && (long || Boolean(box.dataset.tail));

  const toEnd = () => { view.scrollTop = view.scrollHeight; };
  const show = () => {
    button.hidden = follows || !unseen;
    button.textContent = `Following paused, ${unseen} new line${unseen === 1 ? "" : "s"}`;
  };
  const resume = () => { follows = true; unseen = 0; toEnd(); show(); };
  box.resume = resume;
  button.onclick = resume;
  (view === scroll ? scroll : document).addEventListener("scroll", () => {
    follows = view.scrollTop + view.clientHeight >= view.scrollHeight - 24;
    if (follows) unseen = 0;
    show();
  }, { passive: true });
  if (follows && view === scroll) toEnd();
  if (!box.dataset.tail) return;

  tail = new EventSource(`${box.dataset.tail}?after=${box.dataset.after}`);
  const source = tail;
  source.onmessage = (event) => {
    const rows = fragment(event.data);
    const count = rows.querySelectorAll("li").length;
    $(".log-empty", box)?.remove();
    grow(list, rows);
    if (follows) trim(list);
    if (follows) toEnd();
    else { unseen += count; show(); }
  };
  source.addEventListener("end", (event) => {
    source.close();
    $(".log-empty", box)?.remove();
    if (event.data) scroll.append(fragment(event.data));
    if (follows) toEnd();
  });
}

// A group may go on from one event to the next: what comes before its end goes into it. One that has
// ended folds while the log is followed; a reader who has stopped somewhere keeps what they see.
function grow(list, rows) {
  for (const row of [...rows.children]) {
    let group = $("details[data-open]", list);
    if (group && row.matches(".fold")) group = ended(group);
    (group ? $("ol", group) : list).append(row);
    if (group && row.dataset.stream === "endgroup") ended(group);
  }
}

function ended(group) {
  group.removeAttribute("data-open");
  if (follows) group.open = false;
}

function trim(list) {
  let extra = list.getElementsByTagName("li").length - LINES_MAX;
  const group = $("details[data-open] > ol", list);
  while (extra > 0) {
    const oldest = list.childElementCount > 1 ? list.firstElementChild : group?.firstElementChild;
    if (!oldest) return;
    extra -= 1 + oldest.getElementsByTagName("li").length;
    oldest.remove();
  }
}

// `#L{step}:{from}:{to}` chooses a range: a click on a number one line, with shift up to there.
function choose() {
  for (const line of document.querySelectorAll(".log .chosen")) line.classList.remove("chosen");
  const step = $("#run-log .log-box")?.dataset.step;
  if (!step || !location.hash.startsWith(`#L${step}:`)) return null;
  const [from, to = from] = location.hash.slice(step.length + 3).split(":").map(Number);
  let first = null;
  for (const line of document.querySelectorAll("#run-log .log [id]")) {
    const number = Number(line.id.slice(line.id.lastIndexOf(":") + 1));
    if (number < Math.min(from, to) || number > Math.max(from, to)) continue;
    line.classList.add("chosen");
    const group = line.closest("details");
    if (group) group.open = true;
    first ??= line;
  }
  return first;
}

document.addEventListener("click", (event) => {
  const link = event.target.closest(".log li a[href]");
  const step = link?.closest(".log-box")?.dataset.step;
  if (!step || !event.shiftKey || !location.hash.startsWith(`#L${step}:`)) return;
  event.preventDefault();
  const from = location.hash.slice(step.length + 3).split(":")[0];
  history.replaceState(null, "", `#L${step}:${from}:${link.textContent}`);
  choose();
});

// --- time -------------------------------------------------------------------------------------

const skew = Date.now() - Number(document.body.dataset.now); // a reader's clock may be wrong
const pad = (number) => String(number).padStart(2, "0");

// As filters.duration and filters.relative say it.
function duration(ms) {
  const s = Math.floor(ms / 1000), m = Math.floor(s / 60), h = Math.floor(m / 60);
  if (s < 60) return `${s}s`;
  if (m < 60) return `${m}m ${pad(s % 60)}s`;
  return h < 24 ? `${h}h ${pad(m % 60)}m` : `${Math.floor(h / 24)}d ${pad(h % 24)}h`;
}

function relative(at, now) {
  const s = Math.abs(now - at) / 1000;
  if (s < 10) return "just now";
  const units = [["second", 1, 60], ["minute", 60, 3600], ["hour", 3600, 172800], ["day", 86400, 5184000]];
  const [word, seconds] = units.find((unit) => s < unit[2]) ?? [];
  if (!word) return null; // months and years do not change while a page is open
  const n = Math.floor(s / seconds + (at > now ? 0.5 : 0));
  const text = `${n} ${word}${n === 1 ? "" : "s"}`;
  return at > now ? `in ${text}` : `${text} ago`;
}

function tick() {
  const now = Date.now() - skew;
  for (const element of document.querySelectorAll("[data-since]"))
    element.textContent = duration(Math.max(0, now - Number(element.dataset.since)));
  for (const element of document.querySelectorAll("time:not(.exact)")) {
    const text = relative(Date.parse(element.dateTime), now);
    if (text && element.textContent !== text) element.textContent = text;
  }
}

// --- keys -------------------------------------------------------------------------------------

const ROWS = ".steps tbody tr, .runs tbody tr, .journal tbody tr";
const rowAt = () => $("tr.at")?.dataset.step;

function mark(row) {
  $("tr.at")?.classList.remove("at");
  row?.classList.add("at");
}

function move(by) {
  const rows = [...document.querySelectorAll(ROWS)];
  if (!rows.length) return;
  const at = rows.findIndex((row) => row.classList.contains("at"));
  const from = at >= 0 ? at : rows.findIndex((row) => row.hasAttribute("aria-current"));
  const row = rows[Math.min(rows.length - 1, Math.max(0, from + by))];
  mark(row);
  $("a", row)?.focus();
  row.scrollIntoView({ block: "nearest" });
}

function end() {
  const box = $("#run-log .log-box");
  if (box?.resume) box.resume();
  else document.scrollingElement.scrollTop = document.scrollingElement.scrollHeight;
}

function top() {
  follows = false;
  for (const view of [$(".log-scroll"), document.scrollingElement]) if (view) view.scrollTop = 0;
}

function press(key) {
  const target = $(`[data-key="${key}"]`);
  if (!target) return false;
  if (target.matches("input")) target.focus();
  else if (target.matches("summary")) {
    target.parentElement.open = true;
    $("button", target.parentElement)?.focus();
  } else target.click();
  return true;
}

let before = "";
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  if (event.target.closest("input, select, textarea, [contenteditable]")) return;
  const { key } = event;
  const twice = before === "g" && key === "g";
  before = twice ? "" : key;
  if (key === "j") move(1);
  else if (key === "k") move(-1);
  else if (key === "G") end();
  else if (twice) top();
  else if (key === "?") $("#keys").showModal();
  else if (key === "Escape") $("details.menu[open]")?.removeAttribute("open");
  else if (!["h", "l", "/", "R", "A"].includes(key) || !press(key)) return;
  event.preventDefault();
});

const run = $("#run[data-live]");
if (run?.dataset.live) follow(run);
log();
choose()?.scrollIntoView({ block: "center" });
addEventListener("hashchange", () => choose()?.scrollIntoView({ block: "nearest" }));
tick();
setInterval(tick, 1000);
