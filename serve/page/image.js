// Images with every grey level: NPY, PNG and plain DICOM decoded here, and a view that windows them.
// An image: { width, height, data (numbers, one a pixel), bits, low, high, unit, rgb }.

const text = new TextDecoder("latin1");

function image(width, height, data, more = {}) {
  if (data.length !== width * height) throw new Error(`${data.length} values for ${width} x ${height} px`);
  let low = Infinity, high = -Infinity;
  for (const value of data) { if (value < low) low = value; if (value > high) high = value; }
  return { width, height, data, low, high, bits: 8, unit: "", rgb: null, ...more };
}

// --- NPY ---------------------------------------------------------------------------------------

const TYPES = {
  "|u1": [Uint8Array, "getUint8", 8], "u1": [Uint8Array, "getUint8", 8], "u2": [Uint16Array, "getUint16", 16],
  "i2": [Int16Array, "getInt16", 16], "f4": [Float32Array, "getFloat32", 32],
};

export function decodeNpy(buffer) {
  const view = new DataView(buffer);
  if (text.decode(buffer.slice(1, 6)) !== "NUMPY") throw new Error("no NPY");
  const wide = view.getUint8(6) > 1;
  const length = wide ? view.getUint32(8, true) : view.getUint16(8, true), start = (wide ? 12 : 10) + length;
  const head = text.decode(buffer.slice(wide ? 12 : 10, start));
  const type = /'descr': *'([^']*)'/.exec(head)[1];
  const shape = /'shape': *\(([^)]*)\)/.exec(head)[1].split(",").map((part) => part.trim()).filter(Boolean).map(Number);
  const [Kind, read, bits] = TYPES[type.replace(/^[<>]/, "")] || (() => { throw new Error(`values of type ${type}`); })();
  if (/'fortran_order': *True/.test(head) || shape.length !== 2) throw new Error(`an array of shape (${shape})`);
  const [height, width] = shape, size = Kind.BYTES_PER_ELEMENT, little = !type.startsWith(">");
  if (buffer.byteLength - start !== width * height * size) throw new Error("the array is cut off");
  const data = new Kind(width * height);
  for (let n = 0; n < data.length; n++) data[n] = view[read](start + n * size, little);
  return image(width, height, data, { bits });
}

// --- PNG: 1 to 16 bits, grey, RGB, palette, with or without alpha; not interlaced ---------------

export async function decodePng(buffer) {
  const view = new DataView(buffer), parts = [];
  let head = null, palette = null;
  for (let at = 8; at + 12 <= buffer.byteLength;) {
    const length = view.getUint32(at), kind = text.decode(buffer.slice(at + 4, at + 8)), body = at + 8;
    if (kind === "IHDR") head = { width: view.getUint32(body), height: view.getUint32(body + 4), depth: view.getUint8(body + 8), colour: view.getUint8(body + 9), interlaced: view.getUint8(body + 12) };
    if (kind === "PLTE") palette = new Uint8Array(buffer, body, length);
    if (kind === "IDAT") parts.push(new Uint8Array(buffer, body, length));
    if (kind === "IEND") break;
    at = body + length + 4;
  }
  if (!head || head.interlaced) throw new Error("a PNG of a kind that is not read here");
  const channels = { 0: 1, 2: 3, 3: 1, 4: 2, 6: 4 }[head.colour];
  const stream = new Blob(parts).stream().pipeThrough(new DecompressionStream("deflate"));
  const raw = new Uint8Array(await new Response(stream).arrayBuffer());
  return levels(head, channels, palette, unfilter(raw, head, channels));
}

function unfilter(raw, { width, height, depth }, channels) {
  const row = Math.ceil(width * channels * depth / 8), step = Math.max(1, channels * depth / 8);
  if (raw.length < height * (row + 1)) throw new Error("the PNG is cut off");
  const out = new Uint8Array(height * row);
  for (let y = 0; y < height; y++) {
    const filter = raw[y * (row + 1)], from = y * (row + 1) + 1, to = y * row;
    for (let x = 0; x < row; x++) {
      const left = x >= step ? out[to + x - step] : 0, up = y ? out[to + x - row] : 0;
      const corner = x >= step && y ? out[to + x - row - step] : 0;
      let guess = 0;
      if (filter === 1) guess = left;
      else if (filter === 2) guess = up;
      else if (filter === 3) guess = (left + up) >> 1;
      else if (filter === 4) guess = paeth(left, up, corner);
      out[to + x] = raw[from + x] + guess;
    }
  }
  return out;
}

function paeth(left, up, corner) {
  const all = left + up - corner, a = Math.abs(all - left), b = Math.abs(all - up), c = Math.abs(all - corner);
  if (a <= b && a <= c) return left;
  return b <= c ? up : corner;
}

function levels({ width, height, depth, colour }, channels, palette, bytes) {
  const count = width * height, row = Math.ceil(width * channels * depth / 8);
  const sample = (y, n) => {
    if (depth === 16) return (bytes[y * row + 2 * n] << 8) | bytes[y * row + 2 * n + 1];
    if (depth === 8) return bytes[y * row + n];
    const bit = n * depth;
    return (bytes[y * row + (bit >> 3)] >> (8 - depth - (bit & 7))) & ((1 << depth) - 1);
  };
  const data = depth === 16 ? new Uint16Array(count) : new Uint8Array(count);
  const coloured = colour === 2 || colour === 6 || colour === 3;
  const rgb = coloured ? new Uint8ClampedArray(4 * count) : null;
  for (let y = 0, n = 0; y < height; y++) {
    for (let x = 0; x < width; x++, n++) {
      if (!coloured) { data[n] = sample(y, x * channels) * (depth < 8 ? 255 / ((1 << depth) - 1) : 1); continue; }
      const at = colour === 3 ? 3 * sample(y, x) : x * channels;
      const three = [0, 1, 2].map((c) => (colour === 3 ? palette[at + c] : sample(y, at + c)));
      data[n] = Math.round(0.299 * three[0] + 0.587 * three[1] + 0.114 * three[2]);
      rgb.set([...three.map((value) => (depth === 16 ? value >> 8 : value)), 255], 4 * n);
    }
  }
  return image(width, height, data, { bits: depth === 16 ? 16 : 8, rgb });
}

// --- DICOM: one grey frame after the other, not compressed ---------------------------------------

const LONG = new Set(["OB", "OW", "OF", "SQ", "UT", "UN", "OD", "OL", "UC", "UR", "OV", "SV", "UV"]);

export function decodeDicom(buffer, frame = 0) {
  if (text.decode(buffer.slice(128, 132)) !== "DICM") throw new Error("no DICOM");
  const view = new DataView(buffer), found = new Map();
  let at = 132, explicit = true;
  while (at + 8 <= buffer.byteLength) {
    const group = view.getUint16(at, true), tag = (group << 16 | view.getUint16(at + 2, true)) >>> 0;
    const named = explicit || group === 2, kind = named ? text.decode(buffer.slice(at + 4, at + 6)) : "";
    let length, body;
    if (!named) { length = view.getUint32(at + 4, true); body = at + 8; }
    else if (LONG.has(kind)) { length = view.getUint32(at + 8, true); body = at + 12; }
    else { length = view.getUint16(at + 6, true); body = at + 8; }
    if (length === 0xffffffff) { if (tag === 0x7fe00010) throw new Error("compressed"); at = skipSequence(view, body, explicit); continue; }
    if (tag === 0x7fe00010) { found.set(tag, [body, length]); break; }
    found.set(tag, text.decode(buffer.slice(body, body + Math.min(length, 256))).replace(/[\0 ]+$/, ""));
    if (kind === "US" || (!named && length === 2)) found.set(tag, view.getUint16(body, true));
    if (tag === 0x00020010) {
      const syntax = found.get(tag);
      if (!["1.2.840.10008.1.2", "1.2.840.10008.1.2.1"].includes(syntax)) throw new Error("compressed or big endian");
      explicit = syntax === "1.2.840.10008.1.2.1";
    }
    at = body + length;
  }
  return dicomImage(view, found, frame);
}

// The end of a sequence of undefined length: items may hold sequences again.
function skipSequence(view, at, explicit) {
  for (let depth = 1; depth && at + 8 <= view.byteLength;) {
    const tag = (view.getUint16(at, true) << 16 | view.getUint16(at + 2, true)) >>> 0;
    if (tag === 0xfffee0dd || tag === 0xfffee00d) { if (tag === 0xfffee0dd) depth--; at += 8; continue; }
    if (tag === 0xfffee000) { const length = view.getUint32(at + 4, true); at += 8 + (length === 0xffffffff ? 0 : length); continue; }
    const kind = explicit ? text.decode(new Uint8Array(view.buffer, at + 4, 2)) : "";
    const long = explicit && LONG.has(kind), head = !explicit ? 8 : long ? 12 : 8;
    const length = !explicit ? view.getUint32(at + 4, true) : long ? view.getUint32(at + 8, true) : view.getUint16(at + 6, true);
    if (length === 0xffffffff) { depth++; at += head; } else at += head + length;
  }
  return at;
}

function dicomImage(view, found, frame) {
  const number = (tag, other) => { const value = Number.parseFloat(String(found.get(tag) ?? "").split("\\")[0]); return Number.isFinite(value) ? value : other; };
  const height = number(0x00280010), width = number(0x00280011), bits = number(0x00280100, 16), stored = number(0x00280101, bits);
  const signed = number(0x00280103, 0) === 1, slope = number(0x00281053, 1), shift = number(0x00281052, 0);
  if (number(0x00280002, 1) !== 1 || !found.has(0x7fe00010) || ![8, 16].includes(bits)) throw new Error("pixels of a kind that is not shown here");
  const [start] = found.get(0x7fe00010), size = bits / 8, count = width * height, offset = start + frame * count * size;
  if (offset + count * size > view.byteLength) throw new Error("the pixels are cut off");
  const data = new Float32Array(count), mask = 2 ** stored - 1, sign = 2 ** (stored - 1);
  for (let n = 0; n < count; n++) {
    let value = (size === 1 ? view.getUint8(offset + n) : view.getUint16(offset + 2 * n, true)) & mask;
    if (signed && value & sign) value -= 2 * sign;
    data[n] = value * slope + shift;
  }
  const made = image(width, height, data, { bits: stored, unit: found.get(0x00080060) === "CT" ? "HU" : "" });
  made.inverted = found.get(0x00280004) === "MONOCHROME1";
  made.window = found.has(0x00281050) && number(0x00281051, 0) > 0 ? [number(0x00281050), number(0x00281051)] : null;
  return made;
}

// --- whatever it is --------------------------------------------------------------------------------

export async function decode(buffer) {
  const head = new Uint8Array(buffer, 0, Math.min(8, buffer.byteLength));
  if (head[0] === 0x93) return decodeNpy(buffer);
  if (head[0] === 0x89 && head[1] === 0x50) return decodePng(buffer);
  if (buffer.byteLength > 132 && text.decode(buffer.slice(128, 132)) === "DICM") return decodeDicom(buffer);
  const bitmap = await createImageBitmap(new Blob([buffer]));
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height), context = canvas.getContext("2d");
  context.drawImage(bitmap, 0, 0);
  const rgb = context.getImageData(0, 0, bitmap.width, bitmap.height).data;
  const data = new Uint8Array(bitmap.width * bitmap.height);
  for (let n = 0; n < data.length; n++) data[n] = Math.round(0.299 * rgb[4 * n] + 0.587 * rgb[4 * n + 1] + 0.114 * rgb[4 * n + 2]);
  return image(bitmap.width, bitmap.height, data, { rgb });
}

// --- window and level -------------------------------------------------------------------------------

// Grey levels 0 to 255: `centre - width / 2` is black, `centre + width / 2` white, rounded between.
export function windowed(data, centre, width) {
  const low = centre - width / 2, factor = 255 / Math.max(width, 1e-9), out = new Uint8ClampedArray(data.length);
  for (let n = 0; n < data.length; n++) {
    const level = Math.floor((data[n] - low) * factor + 0.5);
    out[n] = level < 0 ? 0 : level > 255 ? 255 : level;
  }
  return out;
}

export function full(made) {
  if (made.window) return made.window;
  if (made.bits === 8) return [127.5, 255];
  if (made.bits === 16 && made.data instanceof Uint16Array) return [32767.5, 65535];
  return [(made.low + made.high) / 2, Math.max(made.high - made.low, 1e-6)];
}

export function paint(canvas, made, [centre, width] = full(made), inverted = false) {
  canvas.width = made.width;
  canvas.height = made.height;
  const context = canvas.getContext("2d"), pixels = context.createImageData(made.width, made.height);
  const grey = windowed(made.data, centre, width);
  for (let n = 0; n < grey.length; n++) {
    const level = inverted ? 255 - grey[n] : grey[n];
    pixels.data[4 * n] = pixels.data[4 * n + 1] = pixels.data[4 * n + 2] = level;
    pixels.data[4 * n + 3] = 255;
  }
  context.putImageData(pixels, 0, 0);
}
