// Keeps an open page fresh: the parts that the server says have changed, the times, and a job's output. Everything on the
// page works without this.
"use strict";

const live = document.getElementById("live");
const offset = Number(document.body.dataset.now || Date.now()) - Date.now();
const RECONNECT = 1500;
/** So long after the last word a page says that it is old; a restart of the service takes less. */
const STALE_AFTER = 5000;
/** So long after the last move what is about to be pressed stays as it is. */
const HELD = 3000;
const CONTROLS = ["button", ".button", "summary"];
/** The element that says that a page is old. */
let stale = null;

// Times ---------------------------------------------------------------------------------------------------------------

const rough = (s) => (s < 60 ? `${s}s` : s < 3600 ? `${Math.floor(s / 60)}m` : s < 172800 ? `${Math.floor(s / 3600)}h` : `${Math.floor(s / 86400)}d`);

function length(ms) {
  const s = Math.floor(ms / 1000);
  if (s < 60) return `${s}s`;
  if (s < 3600) return `${Math.floor(s / 60)}m ${s % 60}s`;
  if (s < 86400) return `${Math.floor(s / 3600)}h ${Math.floor((s % 3600) / 60)}m`;
  return `${Math.floor(s / 86400)}d ${Math.floor((s % 86400) / 3600)}h`;
}

function tick() {
  const now = Date.now() + offset;
  for (const time of document.querySelectorAll("time[data-said]")) {
    // What goes on may have ended, and what was to come may not have come, of which nobody has told.
    if (stale && (time.dataset.said === "since" || time.textContent.startsWith("in "))) continue;
    const since = now - Date.parse(time.dateTime);
    const said = time.dataset.said === "since" ? length(Math.max(0, since))
      : since < 0 ? `in ${rough(Math.floor(-since / 1000))}` : `${rough(Math.floor(since / 1000))} ago`;
    if (time.textContent !== said) time.textContent = said;
  }
}
setInterval(tick, 1000);

// The title tells a time exactly, in UTC; whoever points at it gets their own, too.
document.addEventListener("pointerover", (event) => {
  const time = event.target.closest && event.target.closest("time[datetime]");
  if (time && !time.dataset.local) {
    time.dataset.local = "yes";
    time.title += `\n${new Date(time.dateTime).toLocaleString()} here`;
  }
});

// Of a long error the end is what matters.
for (const error of document.querySelectorAll("pre.error")) error.scrollTop = error.scrollHeight;

// What was just done is not told again when the page is reloaded.
if (location.search.includes("done=")) {
  const address = new URL(location.href);
  for (const name of ["done", "n"]) address.searchParams.delete(name);
  history.replaceState(null, "", address);
}

// Parts ---------------------------------------------------------------------------------------------------------------

/** What tells an element from its neighbours, so that it is found again after its part was replaced. */
const mark = (element) => ["id", "href", "action", "aria-label", "name", "value"].map((name) => element.getAttribute(name)).join("|") + element.tagName
  + (element.form ? element.form.getAttribute("action") : "");

function replace({ id, class: name, html, hash }) {
  let part = document.getElementById(id);
  if (!part) {
    part = document.createElement("section");
    part.id = id;
    part.className = name;
    const after = { error: "job" }[id];
    const before = after && document.getElementById(after);
    if (!before) return;
    before.after(part);
  }
  // As it is already, but for the time that has passed.
  if (part.dataset.part === hash) return;
  part.dataset.part = hash;
  const focused = part.contains(document.activeElement) ? mark(document.activeElement) : null;
  const chosen = new Set([...part.querySelectorAll("input[type=checkbox]:checked")].map((box) => box.value));
  const scrolled = [...part.querySelectorAll(".scroll, pre")].map((element) => [element.scrollLeft, element.scrollTop]);
  part.innerHTML = html;
  for (const box of part.querySelectorAll("input[type=checkbox]")) if (chosen.has(box.value)) box.checked = true;
  [...part.querySelectorAll(".scroll, pre")].forEach((element, place) => {
    if (scrolled[place]) [element.scrollLeft, element.scrollTop] = scrolled[place];
  });
  if (focused) {
    const again = [...part.querySelectorAll("a, button, input, select, [tabindex]")].find((element) => mark(element) === focused);
    if (again) again.focus({ preventScroll: true });
  }
}

/** When somebody last used pointer or keyboard. */
let used = 0;
for (const name of ["pointermove", "pointerdown", "keydown"]) addEventListener(name, () => { used = Date.now(); }, { capture: true, passive: true });
/** Parts that have changed where somebody is about to press something, which must not become something else just then. */
const held = new Map();

function isHeld(id) {
  const part = document.getElementById(id);
  if (!part || Date.now() - used > HELD) return false;
  const focused = document.activeElement;
  return part.querySelector(CONTROLS.map((one) => `${one}:hover`)) !== null || (part.contains(focused) && focused.matches(CONTROLS));
}

const headline = () => {
  const said = document.querySelector("#situation h1 span, #job .state .badge");
  return said ? said.textContent.trim() : "";
};
let saidLast = headline();

function show(part) {
  if (isHeld(part.id)) return held.set(part.id, part);
  held.delete(part.id);
  replace(part);
  tick();
  const said = headline();
  const news = document.getElementById("news");
  if (news && said !== saidLast) news.textContent = said;
  saidLast = said;
}
setInterval(() => held.forEach(show), 500);

// Output --------------------------------------------------------------------------------------------------------------

const LINES_OF_A_BLOCK = 300;
const MOST_LINES = 250000;

/** The output of a job: blocks of some hundred lines, of which the browser lays out those that can be seen. */
class Log {
  constructor(box) {
    this.box = box;
    this.attempt = box.dataset.attempt;
    this.lines = 0;
    this.last = null;
    this.found = [];
    this.current = -1;
    const tool = (name) => document.getElementById(`log-${name}`);
    this.counter = tool("lines");
    this.told = tool("found");
    this.search = tool("search");
    this.follow = tool("follow");
    this.part = tool("part");
    this.missing = tool("missing");
    this.earlier = tool("earlier");
    // What is left out at the start: bytes that were not sent, in words, and lines that were, and are not kept.
    this.unsent = "";
    this.dropped = 0;
    this.earlier.hidden = this.part.hidden;
    tool("tools").hidden = false;
    this.adopt();
    this.earlier.addEventListener("click", () => this.fromTheStart());
    tool("stream").addEventListener("change", (event) => {
      box.classList.toggle("only-stdout", event.target.value === "stdout");
      box.classList.toggle("only-stderr", event.target.value === "stderr");
      this.find();
    });
    this.search.addEventListener("input", () => {
      // What is looked for may be in what is not here yet.
      if (this.search.value) this.fromTheStart();
      clearTimeout(this.typing);
      this.typing = setTimeout(() => this.find(), 150);
    });
    this.search.addEventListener("keydown", (event) => {
      if (event.key === "Enter") {
        event.preventDefault();
        this.step(event.shiftKey ? -1 : 1);
      }
    });
    tool("next").addEventListener("click", () => this.step(1));
    tool("previous").addEventListener("click", () => this.step(-1));
    this.follow.addEventListener("change", () => this.follow.checked && this.toEnd());
    // Whoever scrolls up wants to read there, and whoever scrolls to the end wants to follow.
    const away = () => { if (box.scrollTop + box.clientHeight < box.scrollHeight - 40) this.follow.checked = false; };
    box.addEventListener("wheel", (event) => event.deltaY < 0 && away(), { passive: true });
    box.addEventListener("touchmove", away, { passive: true });
    box.addEventListener("keydown", (event) => ["ArrowUp", "PageUp", "Home"].includes(event.key) && setTimeout(away));
    // What is out of sight has no layout, so where its end is turns out only when somebody scrolls here.
    new IntersectionObserver((seen) => seen.some((one) => one.isIntersecting) && this.follow.checked && this.toEnd()).observe(box);
  }

  /** Takes over what the server has shown, and goes on from there. */
  adopt() {
    const shown = [...this.box.querySelectorAll("pre")].map((pre) => [pre.className, pre.textContent]);
    // Where nothing is shown, or not how far it reaches, the stream brings all of it.
    this.at = shown.length ? this.box.dataset.at || null : null;
    this.fresh = this.at === null;
    if (this.fresh) return;
    this.box.textContent = "";
    shown.forEach((one) => this.append(one));
  }

  /** Has everything sent that a page can have. */
  fromTheStart() {
    if (this.earlier.hidden) return;
    this.earlier.hidden = true;
    // Whoever reads somewhere goes on to read there, as far from the end as that is.
    if (!this.follow.checked) this.stay = { until: Number(this.at), below: this.box.scrollHeight - this.box.scrollTop };
    this.at = null;
    this.fresh = true;
    disconnect();
    connect();
  }

  /** Takes what the stream tells. */
  take({ pieces, at, skipped }) {
    if (this.fresh) {
      // What was shown is the end of what comes now.
      this.box.textContent = "";
      this.lines = 0;
      this.last = null;
      this.dropped = 0;
      this.unsent = skipped ? skipped.size : "";
      this.fresh = false;
      this.tellMissing();
    }
    this.at = at;
    pieces.forEach((one) => this.append(one));
  }

  tellMissing() {
    // What comes before the end that was shown at first can still be had.
    if (!this.earlier.hidden) return;
    const dropped = this.dropped && `${this.dropped.toLocaleString("en")} lines`;
    this.part.hidden = !this.unsent && !dropped;
    if (!this.part.hidden) this.missing.textContent = `The first ${[this.unsent, dropped].filter(Boolean).join(" and ")} are not shown here.`;
  }

  /** Adds what a stream has written; it may begin and end within a line. */
  append([stream, text]) {
    const whole = text.endsWith("\n");
    const lines = (whole ? text.slice(0, -1) : text).split("\n");
    const goesOn = this.last && this.last.stream === stream && !this.last.whole;
    if (goesOn) {
      this.last.node.appendData(lines.shift());
      this.last.whole = whole || lines.length > 0;
    }
    for (let start = 0; start < lines.length;) {
      if (!this.last || this.last.stream !== stream || this.last.count >= LINES_OF_A_BLOCK) {
        const block = document.createElement("div");
        block.className = `block ${stream}`;
        block.append(document.createTextNode(""));
        this.box.append(block);
        this.last = { node: block.firstChild, stream, count: 0, whole: true };
      }
      const some = lines.slice(start, start + LINES_OF_A_BLOCK - this.last.count);
      this.last.node.appendData((this.last.count ? "\n" : "") + some.join("\n"));
      this.last.count += some.length;
      // As high as it will be where no line is broken (`.log` has lines of 1.5em), so that the end is where it seems to be.
      this.last.node.parentNode.style.containIntrinsicBlockSize = `auto ${this.last.count * 1.5}em`;
      this.last.whole = whole || start + some.length < lines.length;
      start += some.length;
    }
    this.lines += lines.length;
    while (this.lines > MOST_LINES && this.box.firstChild !== this.last.node.parentNode) {
      const count = this.box.firstChild.textContent.split("\n").length;
      this.lines -= count;
      this.dropped += count;
      this.box.firstChild.remove();
      this.tellMissing();
    }
    const end = this.part.hidden ? "" : "the last ";
    this.counter.textContent = `${end}${this.lines.toLocaleString("en")} ${this.lines === 1 ? "line" : "lines"}`;
    if (!this.drawing) {
      this.drawing = requestAnimationFrame(() => {
        this.drawing = null;
        if (this.follow.checked) this.toEnd();
        else if (this.stay) this.box.scrollTop = this.box.scrollHeight - this.stay.below;
        if (this.stay && this.at >= this.stay.until) this.stay = null;
        if (this.search.value) this.find(true);
      });
    }
  }

  /**
   * Goes to the end, and on while what comes into sight there turns out to be higher than was thought. That turns out only
   * after a frame is drawn, so it is the end where it has been for some frames.
   */
  toEnd(tries = 40, still = 0) {
    this.box.scrollTop = this.box.scrollHeight;
    requestAnimationFrame(() => {
      const left = this.box.scrollHeight - this.box.clientHeight - this.box.scrollTop;
      const frames = left > 2 ? 0 : still + 1;
      if (frames < 4 && tries > 0 && this.follow.checked) this.toEnd(tries - 1, frames);
    });
  }

  find(keep) {
    const wanted = this.search.value.toLowerCase();
    const before = this.found[this.current];
    this.found = [];
    const only = document.getElementById("log-stream").value;
    if (wanted) {
      for (const block of this.box.children) {
        if (only !== "both" && !block.classList.contains(only)) continue;
        const node = block.firstChild;
        const text = node && node.nodeType === 3 ? node.data.toLowerCase() : "";
        for (let at = text.indexOf(wanted); at >= 0 && this.found.length < 5000; at = text.indexOf(wanted, at + wanted.length)) {
          this.found.push({ node, at, length: wanted.length });
        }
      }
    }
    this.current = keep && before ? this.found.findIndex((one) => one.node === before.node && one.at === before.at) : -1;
    this.show();
    if (this.current < 0 && this.found.length) this.step(1);
  }

  step(by) {
    if (!this.found.length) return;
    this.current = (this.current + by + this.found.length) % this.found.length;
    this.follow.checked = false;
    const range = this.range(this.found[this.current]);
    const block = range.startContainer.parentNode;
    // A block that is far away has no layout before it is brought near.
    block.scrollIntoView({ block: "nearest" });
    requestAnimationFrame(() => {
      const place = range.getBoundingClientRect();
      const box = this.box.getBoundingClientRect();
      this.box.scrollTop += place.top - box.top - box.height / 3;
    });
    this.show();
  }

  range({ node, at, length: size }) {
    const range = new Range();
    range.setStart(node, at);
    range.setEnd(node, at + size);
    return range;
  }

  show() {
    const more = this.found.length >= 5000 ? "+" : "";
    this.told.textContent = !this.search.value ? "" : !this.found.length ? "not found" : `${Math.max(0, this.current) + 1} of ${this.found.length}${more}`;
    if (!window.CSS || !CSS.highlights) return;
    CSS.highlights.set("found", new Highlight(...this.found.map((one) => this.range(one))));
    const current = this.found[this.current];
    if (current) CSS.highlights.set("current", new Highlight(this.range(current)));
    else CSS.highlights.delete("current");
  }
}

// The stream ----------------------------------------------------------------------------------------------------------

/** A browser has six connections for all pages of one service, so a page that nobody sees has none. */
let events = null;
let retry = null;
let turnedStale = null;
let script = null;
/** Whether the page is told of changes, and since when it has not been. */
let isTold = false;
let left = Date.now();

const startLog = () => {
  const box = document.getElementById("log");
  return box ? new Log(box) : null;
};
let log = startLog();

function say(word, name) {
  if (!live) return;
  live.textContent = word;
  live.className = name;
}

/** What the page shows is as it is now. */
function fresh() {
  isTold = true;
  clearTimeout(turnedStale);
  turnedStale = null;
  if (stale) stale.remove();
  stale = null;
  document.body.classList.remove("stale");
}

/** What the page shows is as it was: after a while it says so where it can't be overlooked. */
function old(why) {
  leave();
  if (turnedStale !== null) return;
  const since = new Date(left + offset).toISOString().slice(11, 19);
  turnedStale = setTimeout(() => {
    stale = document.createElement("p");
    stale.id = "stale";
    stale.className = "notice bad";
    stale.setAttribute("role", "alert");
    stale.textContent = `${why} since ${since} UTC. What stands below is from then.`;
    document.getElementById("main").prepend(stale);
    document.body.classList.add("stale");
  }, STALE_AFTER);
}

function leave() {
  if (isTold) left = Date.now();
  isTold = false;
}

function disconnect() {
  clearTimeout(retry);
  leave();
  if (events) events.close();
  events = null;
}

function connect() {
  clearTimeout(retry);
  if (events || document.hidden) return;
  const address = new URL(document.body.dataset.live, location.href);
  if (log) {
    address.searchParams.set("attempt", log.attempt);
    if (log.at !== null) address.searchParams.set("at", log.at);
  }
  const source = new EventSource(address);
  events = source;
  const on = (name, told) => source.addEventListener(name, (event) => events === source && told(event.data));
  on("hello", (data) => {
    const hello = JSON.parse(data);
    // Another version of the service has other pages.
    if (script && script !== hello.script) return location.reload();
    script = hello.script;
    say("live", "on");
  });
  on("part", (data) => {
    // A stream begins with all of them, and after trouble with the database they say that it answers again.
    say("live", "on");
    fresh();
    show(JSON.parse(data));
  });
  on("title", (data) => { document.title = `${data} · Callsheet`; });
  on("log", (data) => {
    if (log) log.take(JSON.parse(data));
  });
  on("output", (data) => {
    const output = document.getElementById("output");
    if (!output) return;
    output.outerHTML = JSON.parse(data).html;
    log = startLog();
  });
  on("trouble", (data) => {
    say("the database does not answer", "off");
    if (live) live.title = data;
    old("The database does not answer");
  });
  source.addEventListener("error", () => {
    if (events !== source) return;
    disconnect();
    say("reconnecting…", "off");
    old("No connection to the service");
    retry = setTimeout(connect, RECONNECT);
  });
}

if (document.body.dataset.live) {
  connect();
  addEventListener("visibilitychange", () => (document.hidden ? disconnect() : connect()));
  // What is asked for now may need the connection, and may turn out to be no other page.
  addEventListener("beforeunload", () => {
    disconnect();
    retry = setTimeout(connect, RECONNECT);
  });
  addEventListener("pagehide", disconnect);
  addEventListener("pageshow", (event) => event.persisted && connect());
}
