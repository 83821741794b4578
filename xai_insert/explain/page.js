"use strict";
// The page of xai-explain. Records, maps and facts of the run come as calls of `xai` from script files, since a page
// that is opened as a file may read nothing else. Their texts are anyone's: they become text nodes, never markup.
const xai = (() => {
  const KEPT = 400, AT_ONCE = 8, SETTLED = 60, PHONE = 760;
  const alike = new Intl.Collator("en").compare, counted = new Intl.Collator("en", { numeric: true }).compare;
  const byId = (id) => document.getElementById(id);
  const runs = [], luts = new Map(), loaded = new Map();
  let shown = [], rows = new Map(), palettes = {}, layout = {}, open = null, waiting = [], loading = 0;

  const runOf = () => {
    const { run } = document.currentScript.dataset;
    return (runs[run] ??= { about: {}, records: [], byName: new Map(), folder: "" });
  };
  const address = (run, file) => run.folder + file.split("/").map(encodeURIComponent).join("/");
  const best = (record) => record.predictions[0];

  // Which images

  function doubt(record) {
    const [first] = record.predictions, second = record.predictions.find((item) => item.label !== first.label);
    if (!runs[1]) return second ? second.score / first.score : 0;
    const other = runs[1].byName.get(record.name);
    if (!other) return -1;
    const [mine, theirs] = [best(record), best(other)];
    if (!mine || !theirs) return mine || theirs ? 2 : -1;
    const apart = Math.abs(mine.score - theirs.score);
    return mine.label === theirs.label ? apart : 1 + Math.min(mine.score, theirs.score);
  }

  const SORTS = {
    order: ["order of the run", null],
    name: ["file name", (a, b) => counted(a.file, b.file)],
    class: ["class", (a, b) => alike(best(a)?.label ?? "\uffff", best(b)?.label ?? "\uffff")],
    high: ["score, best first", (a, b) => (best(b)?.score ?? -1) - (best(a)?.score ?? -1)],
    low: ["score, least first", (a, b) => (best(a)?.score ?? -1) - (best(b)?.score ?? -1)],
    doubt: ["disagreement", (a, b) => b.doubt - a.doubt],
  };

  function choose() {
    const text = byId("text").value.toLowerCase(), label = byId("class").value, least = Number(byId("least").value);
    shown = runs[0].records.filter((record) => {
      if (text && !record.file.toLowerCase().includes(text)) return false;
      if (!label && !least) return true;
      const found = label ? record.predictions.filter((item) => `=${item.label}` === label) : record.predictions;
      return found.some((item) => item.score >= least) || (label && !least && found.length);
    });
    const order = SORTS[byId("sort").value][1];
    const all = runs[0].records.length;
    if (order) shown.sort(order);
    byId("count").textContent = shown.length === all ? `${all} images` : `${shown.length} of ${all} images`;
    rebuild();
  }

  // Which maps: of each run those of the chosen classes, or all

  function figures(record) {
    const wanted = [byId("first").value, byId("second").value].filter(Boolean), found = [];
    runs.forEach((run) => {
      const own = run.byName.get(record.name);
      if (!own) return;
      const maps = own.maps.map((map, index) => ({ record: own, run, map, index }));
      if (!wanted.length) found.push(...maps);
      for (const label of wanted) {
        const fits = maps.filter(({ map }) => `=${map.label ?? map.title}` === label);
        found.push(...(fits.length ? fits : [{ record: own, run, map: { title: label.slice(1) }, index: null }]));
      }
    });
    const photo = { record, run: runs[0], map: null };
    return layout.isPhone ? [...found, photo] : [photo, ...found]; // what comes first fills a phone
  }

  // Maps: fetched when a row stays in view, coloured on a canvas

  function fetchMaps(run, record, done) {
    const key = address(run, record.data);
    const known = loaded.get(key);
    if (known) {
      loaded.delete(key);
      loaded.set(key, known); // the last to be used is the last to be dropped
      done(known);
      return;
    }
    waiting.push({ key, done });
    next();
  }

  function next() {
    while (loading < AT_ONCE && waiting.length) {
      const { key } = waiting[0];
      const same = waiting.filter((item) => item.key === key);
      waiting = waiting.filter((item) => item.key !== key);
      if (!same.some(({ done }) => done.wanted?.() ?? true)) continue;
      const script = el("script", { src: key });
      script.onload = script.onerror = () => {
        loading -= 1;
        script.remove();
        for (const { done } of same) done(loaded.get(key) ?? null);
        next();
      };
      loading += 1;
      document.head.append(script);
    }
  }

  function keep(key, data) {
    for (const map of data.maps) map.values = Uint8Array.from(atob(map.data), (character) => character.charCodeAt(0));
    loaded.set(key, data);
    for (const old of loaded.keys()) {
      if (loaded.size <= KEPT) break;
      loaded.delete(old);
    }
  }

  function colours() {
    const name = byId("palette").value;
    if (!luts.has(name)) luts.set(name, Uint8Array.from(atob(palettes[name]), (character) => character.charCodeAt(0)));
    return luts.get(name);
  }

  function paintLegend() {
    const context = document.querySelector("#colors canvas").getContext("2d"), image = context.createImageData(256, 1);
    new Uint32Array(image.data.buffer).set(inks(colours(), 1));
    context.putImageData(image, 0, 0);
  }

  // One picture

  function caption(item) {
    const { map, run } = item, parts = [];
    const of = runs.length > 1 ? `${run.about.Model ?? ""}: ` : "";
    if (!map) return [el("b", {}, "image")];
    if (item.index === null) return [`${of}no map of `, el("b", {}, map.title)];
    parts.push(of, el("b", {}, map.title), map.score === undefined ? "" : ` ${map.score.toFixed(2)}`);
    return parts;
  }

  function figure(item, most, tall, { isLarge = false } = {}) {
    const [width, height] = item.record.size, scale = Math.min(tall / height, most / width);
    const [wide, high] = [Math.max(width * scale, 40), Math.max(height * scale, 24)];
    const frame = el("span", { class: item.map ? "frame map" : "frame" });
    frame.style.width = `${wide}px`;
    frame.style.height = `${high}px`;
    const text = el("figcaption", {}, ...caption(item));
    text.style.width = isLarge ? "auto" : `${Math.max(wide, 96)}px`;
    const label = `${item.record.file}: ${text.textContent}`;
    const button = el("button", { type: "button", "aria-label": isLarge ? `Close ${label}` : `Enlarge ${label}` }, frame);
    const made = el("figure", {}, button, text);
    made.fill = () => {
      const image = el("img", { src: address(item.run, item.record.image), alt: "", decoding: "async" });
      frame.append(image);
      if (item.map && item.index !== null) addMap(made, frame, text, item, isLarge);
    };
    return made;
  }

  function addMap(made, frame, text, item, isLarge) {
    const done = (data) => {
      if (!data) {
        text.append(" (the file of its map is missing)");
        return;
      }
      const map = data.maps[item.index], how = scaling(item.record, data, item.index, byId("scale").value === "each"), canvas = el("canvas");
      paintMap(canvas, map, colours(), how);
      const [left, top, right, bottom] = data.place;
      Object.assign(canvas.style, { left: percent(left), top: percent(top) });
      Object.assign(canvas.style, { width: percent(right - left), height: percent(bottom - top) });
      frame.append(canvas);
      if (data.seen) {
        const [x0, y0, x1, y1] = data.seen, seen = el("span", { class: "seen" });
        Object.assign(seen.style, { left: percent(x0), top: percent(y0), width: percent(x1 - x0), height: percent(y1 - y0) });
        frame.append(seen);
      }
      mark(frame, map.objects.map((index) => data.objects[index]));
      if (!isLarge) return;
      const ends = map.span ? `, colours from ${map.span[0].toPrecision(3)} to ${(map.span[0] + (map.span[1] - map.span[0]) / how.reach).toPrecision(3)}` : "";
      text.append(el("br"), `${how.text}${ends}, map ${item.map.grid.join(" x ")}`);
    };
    done.wanted = () => made.isConnected;
    fetchMaps(item.run, item.record, done);
  }

  // The list: only the rows in view exist

  function measure() {
    const width = document.documentElement.clientWidth, isPhone = width <= PHONE;
    const tall = isPhone ? Math.round(Math.min(width - 24, innerHeight * 0.7)) : 186, most = isPhone ? width - 24 : 340;
    const tops = new Float64Array(shown.length + 1);
    shown.forEach(({ size: [w, h] }, index) => {
      const own = isPhone ? Math.min(tall, Math.max(Math.round((most * h) / w), 24)) : tall;
      tops[index + 1] = tops[index] + own + (isPhone ? 118 : 72);
    });
    layout = { isPhone, tall, most, tops };
  }

  function rowAt(height) {
    const next = layout.tops.findIndex((top) => top > height);
    return next < 0 ? shown.length : Math.max(next - 1, 0);
  }

  function rebuild() {
    for (const { made } of rows.values()) made.remove();
    rows = new Map();
    measure();
    const list = byId("list");
    list.style.height = `${Math.max(layout.tops[shown.length], 1)}px`;
    document.querySelector(".none")?.remove();
    if (!shown.length) list.before(el("p", { class: "none" }, "No image fits."));
    view(true);
  }

  function view(isFirst = false) {
    const list = byId("list"), top = -list.getBoundingClientRect().top;
    const first = Math.max(rowAt(top) - 1, 0), last = Math.min(rowAt(top + innerHeight) + 2, shown.length);
    for (const [index, { made, timer }] of rows) {
      if ((index >= first && index < last) || made.contains(document.activeElement)) continue;
      clearTimeout(timer);
      made.remove();
      rows.delete(index);
    }
    for (let index = first; index < last; index++) {
      if (rows.has(index)) continue;
      const made = row(shown[index], index);
      const after = [...rows.keys()].filter((other) => other > index).sort((a, b) => a - b)[0];
      list.insertBefore(made, after === undefined ? null : rows.get(after).made);
      const fill = () => made.querySelectorAll("figure").forEach((one) => one.fill());
      if (isFirst) fill();
      rows.set(index, { made, timer: isFirst ? 0 : setTimeout(fill, SETTLED) });
    }
  }

  function row(record, index) {
    const facts = el("div", { class: "facts" }, el("h2", { title: record.source }, record.file));
    facts.append(el("p", {}, `${record.size.join(" × ")} pixels`));
    const found = el("ol");
    for (const item of record.predictions.slice(0, 5)) {
      const bar = el("i");
      bar.style.backgroundSize = `${percent(item.score)} 100%`;
      found.append(el("li", {}, el("span", { title: item.label }, item.label), el("span", { class: "score" }, item.score.toFixed(2)), bar));
    }
    facts.append(record.predictions.length ? found : el("p", {}, record.note ?? "nothing found"));
    const strip = el("div", { class: "strip" });
    figures(record).forEach((item, at) => {
      const made = figure(item, layout.most, layout.tall);
      made.firstChild.addEventListener("click", () => enlarge(index, at));
      strip.append(made);
    });
    const made = el("li", { "aria-posinset": index + 1, "aria-setsize": shown.length }, facts, strip);
    Object.assign(made.style, { transform: `translateY(${layout.tops[index]}px)`, height: `${layout.tops[index + 1] - layout.tops[index]}px` });
    return made;
  }

  // The enlarged picture

  function enlarge(index, at) {
    index = Math.min(Math.max(index, 0), shown.length - 1);
    const all = figures(shown[index]), dialog = document.querySelector("dialog");
    at = Math.min(Math.max(at, 0), all.length - 1);
    open = { index, at };
    const item = all[at], made = figure(item, innerWidth - 48, innerHeight - 150, { isLarge: true });
    made.firstChild.addEventListener("click", () => dialog.close());
    made.lastChild.prepend(`${item.record.file}: `);
    const step = (text, down, along) => {
      const button = el("button", { type: "button" }, text);
      button.addEventListener("click", () => enlarge(open.index + down, open.at + along));
      return button;
    };
    const steps = el("nav", { "aria-label": "Other pictures" }, step("← map", 0, -1), step("map →", 0, 1), step("↑ image", -1, 0), step("image ↓", 1, 0));
    for (const [kind, text] of [["overlay", "file of the overlay"], ["raw", "file of the map"]]) {
      if (item.map?.[kind]) steps.append(el("a", { href: address(item.run, item.map[kind]) }, text));
    }
    dialog.replaceChildren(made, steps);
    if (!dialog.open) dialog.showModal();
    made.firstChild.focus();
    made.fill();
  }

  function closed() {
    const { index, at } = open;
    const [top, bottom] = layout.tops.subarray(index, index + 2);
    const start = byId("list").getBoundingClientRect().top + scrollY;
    if (start + top < scrollY || start + bottom > scrollY + innerHeight) scrollTo(0, start + top - 80);
    view(true);
    rows.get(index)?.made.querySelectorAll("figure button")[at]?.focus({ preventScroll: true });
  }

  // The whole page

  const options = (select, entries) => select.replaceChildren(...entries.map(([value, text]) => el("option", { value }, text)));

  function about() {
    const texts = runs.map((run) => [run.about.Model, run.about.Method, run.about.Date].filter(Boolean).join(" · "));
    const box = el("details", {}, el("summary", {}, texts.join("  |  ") || "About this run"));
    box.open = innerWidth > PHONE;
    for (const run of runs) {
      const facts = el("dl");
      for (const [key, value] of Object.entries(run.about)) {
        facts.append(el("dt", {}, key), el("dd", key === "Command" ? { class: "command" } : {}, value));
      }
      box.append(facts);
    }
    byId("about").append(box);
  }

  function ready() {
    document.title = `Explained images${runs[0].about.Model ? ` - ${runs[0].about.Model}` : ""}`;
    const predicted = new Set(), drawn = new Set();
    for (const run of runs) {
      for (const record of run.records) {
        for (const { label } of record.predictions) predicted.add(label);
        for (const { label, title } of record.maps) drawn.add(label ?? title);
      }
    }
    for (const record of runs[0].records) record.doubt = doubt(record);
    const sorted = (names) => [...names].sort(counted).map((name) => [`=${name}`, name]);
    options(byId("class"), [["", "any"], ...sorted(predicted)]);
    options(byId("first"), [["", "all that were drawn"], ...sorted(drawn)]);
    options(byId("second"), [["", "nothing"], ...sorted(drawn)]);
    options(byId("sort"), Object.entries(SORTS).map(([key, [text]]) => [key, text]));
    options(byId("palette"), Object.keys(palettes).map((name) => [name, name]));
    const { opacity = 0.8, colormap = "turbo", background, scale = "shared" } = runs[0].look ?? {};
    Object.assign(byId("opacity"), { value: opacity });
    Object.assign(byId("palette"), { value: colormap });
    Object.assign(byId("scale"), { value: scale });
    byId("gray").checked = background === "gray";
    about();
    const tint = () => {
      document.body.style.setProperty("--opacity", byId("opacity").value);
      document.body.classList.toggle("gray", byId("gray").checked);
    };
    let later = 0;
    for (const id of ["text", "least"]) {
      byId(id).addEventListener("input", () => {
        clearTimeout(later);
        later = setTimeout(choose, 150);
      });
    }
    for (const id of ["class", "sort"]) byId(id).addEventListener("change", () => { scrollTo(0, 0); choose(); });
    for (const id of ["first", "second", "scale"]) byId(id).addEventListener("change", rebuild);
    byId("palette").addEventListener("change", () => { paintLegend(); rebuild(); });
    for (const id of ["opacity", "gray"]) byId(id).addEventListener("input", tint);
    document.querySelector("form").addEventListener("submit", (event) => event.preventDefault());
    const dialog = document.querySelector("dialog"), moves = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] };
    dialog.addEventListener("close", closed);
    dialog.addEventListener("keydown", (event) => {
      const move = moves[event.key];
      if (!move) return;
      event.preventDefault();
      enlarge(open.index + move[0], open.at + move[1]);
    });
    let isDue = false;
    addEventListener("scroll", () => {
      if (isDue) return;
      isDue = true;
      requestAnimationFrame(() => { isDue = false; view(); });
    }, { passive: true });
    let width = innerWidth;
    addEventListener("resize", () => {
      if (innerWidth !== width) rebuild();
      width = innerWidth;
      view();
    });
    tint();
    paintLegend();
    choose();
    document.body.dataset.ready = "";
  }

  function start() {
    const { beside } = runs[0];
    let left = 2;
    if (!beside) return void ready();
    for (const file of ["run.js", "records.js"]) {
      const script = el("script", { src: `${address({ folder: "" }, beside)}/${file}`, "data-run": "1" });
      script.async = false;
      script.onload = script.onerror = () => {
        left -= 1;
        if (left) return;
        if (runs[1]) runs[1].folder = `${address({ folder: "" }, beside)}/`;
        ready();
      };
      document.head.append(script);
    }
  }

  return {
    run: ({ about: facts, palettes: all, look, beside }) => {
      const run = runOf();
      Object.assign(run, { about: facts, look, beside: run === runs[0] ? beside : null });
      palettes = all;
    },
    record: (record) => {
      const { records, byName } = runOf();
      records.push(record);
      byName.set(record.name, record);
    },
    maps: (data) => keep(document.currentScript.getAttribute("src"), data),
    start,
  };
})();
