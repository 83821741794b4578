"use strict";
// What is drawn on a picture: the map, coloured on a canvas as draw.py does for the files (enlarged by cubic
// interpolation, then coloured, with an alpha that follows the value), and the objects.
const MAP_SIDE = 128; // a map is enlarged to this many pixels; the browser does the rest
const FAINTEST = 0.2;
const taps = new Map();

const el = (tag, attributes = {}, ...children) => {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
};
const percent = (value) => `${100 * value}%`;

// For each of `to` pixels, four places in `from` values and their weights, those of OpenCV.
function cubic(from, to) {
  const key = `${from} ${to}`;
  if (taps.has(key)) return taps.get(key);
  const far = (d) => ((-0.75 * d + 3.75) * d - 6) * d + 3, near = (d) => (1.25 * d - 2.25) * d * d + 1;
  const places = new Int32Array(4 * to), weights = new Float32Array(4 * to);
  for (let at = 0; at < to; at++) {
    const place = ((at + 0.5) * from) / to - 0.5, first = Math.floor(place), t = place - first;
    weights.set([far(t + 1), near(t), near(1 - t), far(2 - t)], 4 * at);
    places.set([-1, 0, 1, 2].map((step) => Math.min(Math.max(first + step, 0), from - 1)), 4 * at);
  }
  taps.set(key, { places, weights });
  return taps.get(key);
}

// The pixels of the values 0..255: red, green, blue, and an alpha of value times fade.
function inks(lut, fade) {
  const bytes = new Uint8Array(4 * 256);
  for (let value = 0; value < 256; value++) {
    bytes.set(lut.subarray(3 * value, 3 * value + 3), 4 * value);
    bytes[4 * value + 3] = Math.round(value * fade);
  }
  return new Uint32Array(bytes.buffer);
}

function paintMap(canvas, { w, h, values }, lut, { fade, reach }) {
  const ratio = MAP_SIDE / Math.max(w, h), width = Math.max(Math.round(w * ratio), 1), height = Math.max(Math.round(h * ratio), 1);
  const across = cubic(w, width), down = cubic(h, height), wide = new Float32Array(h * width);
  for (let y = 0, out = 0; y < h; y++) {
    for (let x = 0; x < width; x++, out++) {
      for (let tap = 4 * x; tap < 4 * x + 4; tap++) wide[out] += across.weights[tap] * values[y * w + across.places[tap]];
    }
  }
  Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d"), image = context.createImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer), ink = inks(lut, fade);
  for (let y = 0, out = 0; y < height; y++) {
    for (let x = 0; x < width; x++, out++) {
      let sum = 0;
      for (let tap = 4 * y; tap < 4 * y + 4; tap++) sum += down.weights[tap] * wide[down.places[tap] * width + x];
      pixels[out] = ink[Math.min(Math.max(Math.round(sum * reach), 0), 255)];
    }
  }
  context.putImageData(image, 0, 0);
}

// How far the colours reach: see scale.py, which does the same for the files.
function scaling(record, data, index, isEach) {
  const map = data.maps[index], isBox = (item) => "box" in item;
  const group = record.maps.map((item, at) => ({ item, map: data.maps[at] }))
    .filter(({ item }) => isBox(item) === isBox(record.maps[index]));
  if (isEach) return { fade: 1, reach: 1, text: map.scale ?? "own scale" };
  const { score, strength } = record.maps[index], told = strength ?? score;
  const top = strength === undefined ? Math.max(...group.map(({ item }) => item.score ?? 0)) : 1;
  const fade = told === undefined || top <= 0 ? 1 : Math.min(Math.max(told / top, FAINTEST), 1);
  const widest = Math.max(...group.map((one) => (one.map.span ? one.map.span[1] - one.map.span[0] : 0)));
  const isShared = map.span && group.length > 1;
  const reach = isShared && widest > 0 ? (map.span[1] - map.span[0]) / widest : 1;
  return { fade, reach, text: map.scale ?? (isShared ? "one scale" : "own scale") + (fade < 1 ? ", fainter by score" : "") };
}

// Outlines, or boxes, with their texts.
function mark(frame, objects) {
  if (!objects.length) return;
  const space = "http://www.w3.org/2000/svg", drawing = document.createElementNS(space, "svg");
  drawing.setAttribute("viewBox", "0 0 1 1");
  drawing.setAttribute("preserveAspectRatio", "none");
  const tags = [];
  for (const { box, outline, text } of objects) {
    const [x0, y0, x1, y1] = box, shapes = outline.length ? outline : [[x0, y0, x1, y0, x1, y1, x0, y1]];
    for (const kind of ["rim", "ink"]) {
      for (const points of shapes) {
        const polygon = document.createElementNS(space, "polygon");
        polygon.setAttribute("points", points.join(" "));
        polygon.setAttribute("class", kind);
        drawing.append(polygon);
      }
    }
    const tag = el("span", { class: "tag" }, text);
    Object.assign(tag.style, y0 > 0.1 ? { bottom: percent(1 - y0) } : { top: percent(Math.max(y0, 0)) });
    Object.assign(tag.style, x0 < 0.6 ? { left: percent(Math.max(x0, 0)) } : { right: percent(Math.max(1 - x1, 0)) });
    tags.push(tag);
  }
  frame.append(drawing, ...tags.reverse()); // the best on top
}
