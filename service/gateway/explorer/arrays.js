// Arrays: {shape, data}, data in C order. From and to npy, and tensors as protobuf's JSON has them.

const KINDS = {
  "|u1": Uint8Array,
  "<f4": Float32Array,
  DATA_TYPE_UINT8: Uint8Array,
  DATA_TYPE_FLOAT32: Float32Array,
};

/** Reads an npy file of version 1.0, uint8 or float32, as the gateway writes them. */
export function fromNpy(buffer) {
  const bytes = new Uint8Array(buffer);
  const size = bytes[8] + 256 * bytes[9];
  const head = new TextDecoder().decode(bytes.subarray(10, 10 + size));
  const descr = /'descr': '([^']+)'/.exec(head)[1];
  const shape = /'shape': \(([^)]*)\)/.exec(head)[1].split(",").filter((part) => part.trim()).map(Number);
  return { shape, data: new KINDS[descr](buffer.slice(10 + size)) };
}

/** The content of an npy file of float32, version 1.0. */
export function toNpy({ shape, data }) {
  const fields = `{'descr': '<f4', 'fortran_order': False, 'shape': (${shape.join(", ")},), }`;
  // The elements begin at a multiple of 64, as the format has it.
  const size = Math.ceil((10 + fields.length + 1) / 64) * 64 - 10;
  const head = new TextEncoder().encode(`${fields.padEnd(size - 1)}\n`);
  const file = new Uint8Array(10 + size + 4 * data.length);
  file.set([0x93, ...new TextEncoder().encode("NUMPY"), 1, 0, size & 255, size >> 8]);
  file.set(head, 10);
  file.set(new Uint8Array(Float32Array.from(data).buffer), 10 + size);
  return file;
}

/** Reads a tensor of a reply: uint8, float32, or float16, which becomes float32. */
export function fromTensor(tensor) {
  const text = atob(tensor.data);
  const bytes = Uint8Array.from(text, (letter) => letter.charCodeAt(0));
  const shape = tensor.shape.map(Number);
  if (tensor.dtype === "DATA_TYPE_FLOAT16") return { shape, data: halves(bytes) };
  return { shape, data: new KINDS[tensor.dtype](bytes.buffer) };
}

function halves(bytes) {
  const view = new DataView(bytes.buffer);
  return Float32Array.from({ length: bytes.length / 2 }, (_, index) => {
    const bits = view.getUint16(2 * index, true);
    const sign = bits >> 15 ? -1 : 1;
    const exponent = (bits >> 10) & 31;
    const fraction = bits & 1023;
    if (exponent === 0) return sign * fraction * 2 ** -24;
    if (exponent === 31) return fraction ? NaN : sign * Infinity;
    return sign * (1024 + fraction) * 2 ** (exponent - 25);
  });
}

/** Row `index` of an array of two axes or more, as a view of its data. */
export function row({ shape, data }, index) {
  const size = data.length / shape[0];
  return data.subarray(index * size, (index + 1) * size);
}

/** Base64 of bytes, as in the JSON of protobuf. */
export function toBase64(bytes) {
  let text = "";
  for (let start = 0; start < bytes.length; start += 8192) {
    text += String.fromCharCode(...bytes.subarray(start, start + 8192));
  }
  return btoa(text);
}

/** Base64 that may stand in an address. */
export function toLink(bytes) {
  return toBase64(bytes).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

/** Bytes of `toLink`; null if the text is none. */
export function fromLink(text) {
  try {
    const plain = atob(text.replaceAll("-", "+").replaceAll("_", "/"));
    return Uint8Array.from(plain, (letter) => letter.charCodeAt(0));
  } catch {
    return null;
  }
}

/** As few digits as tell a float32 from its neighbours. */
export function digits(number) {
  const value = Math.fround(number);
  for (let count = 1; count < 9; count++) {
    const text = value.toPrecision(count);
    if (Math.fround(Number(text)) === value) return String(Number(text));
  }
  return String(value);
}
