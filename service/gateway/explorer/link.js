// The address of the page holds its whole state, but for the token.

const WRITE_MS = 150; // browsers limit how often an address may change

let values = new URLSearchParams(location.hash.slice(1));
let timer = 0;

/** The value of a name in the address; "" if there is none. */
export function get(name) {
  return values.get(name) ?? "";
}

/** The value as a number from `low` to `high`; `other` if it is none. */
export function getNumber(name, other, low = -Infinity, high = Infinity) {
  const text = values.get(name);
  const number = Number(text);
  return text && number >= low && number <= high ? number : other;
}

/** Sets values; "", null and undefined remove them. */
export function set(changes) {
  for (const [name, value] of Object.entries(changes)) {
    if (value === "" || value == null) values.delete(name);
    else values.set(name, value);
  }
  clearTimeout(timer);
  timer = setTimeout(flush, WRITE_MS);
}

/** Forgets everything but the names that are given. */
export function keep(...names) {
  set(Object.fromEntries([...values.keys()].filter((name) => !names.includes(name)).map((name) => [name, ""])));
}

/** Writes the address now. */
export function flush() {
  clearTimeout(timer);
  const text = `#${values}`;
  if (text !== location.hash) history.replaceState(null, "", text);
}

/** Calls back when the visitor has followed a link to another state. */
export function onfollow(callback) {
  addEventListener("hashchange", () => {
    clearTimeout(timer);
    values = new URLSearchParams(location.hash.slice(1));
    callback();
  });
}
