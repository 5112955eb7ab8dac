// Classes: their colours, and the choice of one.

import { button, h, labelled } from "./dom.js";

// Ten colours that are distinct with deuteranopia and protanopia too, as in training reports.
const COLOURS = [
  "#1b55c2", "#e6a30c", "#b4a7f2", "#558d00", "#0fa2bc", "#e4566f", "#45cf93", "#804b0e", "#8a5fe6", "#9b1777",
];

/** The colour of a class; grey for none (-1). */
export function colour(label) {
  return label < 0 ? "#8a94a0" : COLOURS[label % COLOURS.length];
}

/** The classes that a model's requests may name. */
export function labelsOf(model) {
  return model.labels ?? [];
}

/** Images in a row of a sheet of all classes. */
export function columnsOf(names) {
  return names.length <= 12 ? names.length : 13;
}

/**
 * A choice of class: buttons for a few, else a list.
 *
 * @param {string[]} names - Names of the classes.
 * @param {number} chosen - Index of the class at first; -1 for any.
 * @param {(label: number) => void} changed - Called with the class that is chosen.
 * @param {string} any - Text of the choice of any class; "" if there is none.
 */
export function classPicker(names, chosen, changed, any = "") {
  const choices = names.map((name, index) => ({ name, index }));
  if (any) choices.unshift({ name: any, index: -1 });
  if (choices.length > 12) {
    const options = choices.map(({ name, index }) => h("option", { value: index, selected: index === chosen }, name));
    const select = h("select", { onchange: () => changed(Number(select.value)) }, ...options);
    return labelled("Class", select);
  }
  const group = h("div", { class: "row classes", role: "group", "aria-label": "Class" });
  for (const { name, index } of choices) {
    const one = button(name, () => {
      for (const other of group.children) other.setAttribute("aria-pressed", other === one);
      changed(index);
    }, { "aria-pressed": String(index === chosen) });
    group.append(one);
  }
  return group;
}
