// One field of the form: its elements, and reading and writing of its value. null is an empty optional field.

import { el, iconButton, say } from "./dom.js";
import { has, t } from "./texts.js";
import { MAX_SEED } from "./schema.js";

/** Returns {box, read, write} for a field of the table. `choices` are the lists of the server. */
export function makeField(field, choices) {
  const made = KINDS[field.kind](field, choices);
  made.box.dataset.field = field.name;
  return made;
}

const idOf = (field) => `field-${field.name.replace(".", "-")}`;
const labelOf = (field) => el("label", { for: idOf(field), text: `field.${field.name}` });
const hintOf = (field) => (has(`hint.${field.name}`) ? `${idOf(field)}-hint` : null);

function boxOf(field, ...parts) {
  const hint = hintOf(field) && el("p", { id: hintOf(field), class: "hint", text: `hint.${field.name}` });
  return el("div", { class: field.half ? "field half" : "field" }, ...parts, hint);
}

function numbers(field, type, id = idOf(field)) {
  return el("input", {
    id, type, name: field.name, min: field.low, max: field.high, step: field.step === 8 ? 8 : (field.step ?? "any"),
    inputmode: "decimal", placeholder: field.optional ? "automatic" : null, "aria-describedby": hintOf(field),
  });
}

/** Returns the whole number of digits. One that a number cannot hold without losing some of them stays a text. */
export const wholeOf = (digits) => (Number.isSafeInteger(Number(digits)) ? Number(digits) : digits);
const DIGITS = /^\d+$/;

const clamp = (field, value) => Math.min(field.high ?? Infinity, Math.max(field.low ?? -Infinity, value));

function readNumber(field, input) {
  const text = input.value.trim();
  if (text === "" || !Number.isFinite(Number(text))) return field.optional ? null : (field.value ?? field.low);
  return DIGITS.test(text) && field.high === undefined ? wholeOf(text) : clamp(field, Number(text));
}

const KINDS = {
  number(field) {
    const input = numbers(field, "number");
    return {
      box: boxOf(field, labelOf(field), input),
      read: () => readNumber(field, input),
      write: (value) => (input.value = value ?? ""),
    };
  },

  range(field) {
    const input = numbers(field, "number");
    if (field.optional) say(input, { placeholder: "automatic.short" });
    const slider = numbers(field, "range", `${idOf(field)}-slider`);
    slider.removeAttribute("name");
    slider.tabIndex = -1; // the number beside it does the same
    slider.setAttribute("aria-hidden", "true");
    const paint = () => {
      const share = (slider.value - slider.min) / (slider.max - slider.min);
      slider.style.setProperty("--share", `${100 * share}%`);
    };
    slider.addEventListener("input", () => {
      input.value = slider.value;
      paint();
    });
    input.addEventListener("input", () => {
      slider.value = input.value === "" ? field.value : input.value;
      paint();
    });
    return {
      box: boxOf(field, el("div", { class: "split" }, labelOf(field), input), slider),
      read: () => readNumber(field, input),
      write: (value) => {
        slider.value = value ?? field.value;
        input.value = value ?? (field.optional ? "" : field.value);
        paint();
      },
    };
  },

  choice(field, choices) {
    const select = el("select", { id: idOf(field), name: field.name, "aria-describedby": hintOf(field) });
    const known = (choices[field.from] ?? []).map(entryOf);
    if (field.optional) select.append(el("option", { value: "", text: field.empty ?? "automatic" }));
    for (const { name, title } of known) select.append(el("option", { value: name, raw: title }));
    return {
      box: boxOf(field, labelOf(field), select),
      read: () => (select.value === "" ? null : select.value),
      write: (value) => {
        const text = value ?? (field.optional ? "" : (known[0]?.name ?? ""));
        const present = [...select.options].some((option) => option.value === String(text));
        if (!present) select.append(el("option", { value: text, raw: text })); // of another server
        select.value = text;
      },
    };
  },

  check(field) {
    const input = el("input", { id: idOf(field), type: "checkbox", name: field.name });
    return {
      box: el("div", { class: "field check" }, input, labelOf(field)),
      read: () => input.checked,
      write: (value) => (input.checked = Boolean(value)),
    };
  },

  seed(field) {
    const input = el("input", {
      id: idOf(field), type: "text", name: field.name, inputmode: "numeric", pattern: "[0-9]*", placeholder: "random",
      "aria-describedby": hintOf(field),
    });
    const random = iconButton("dice", "seed.random", () => {
      input.value = "";
      input.dispatchEvent(new Event("input", { bubbles: true }));
    });
    return {
      box: boxOf(field, labelOf(field), el("div", { class: "row" }, input, random)),
      read: () => (DIGITS.test(input.value.trim()) ? wholeOf(input.value.trim()) : null),
      write: (value) => (input.value = value == null || value < 0 ? "" : value),
    };
  },

  text(field) {
    const area = el("textarea", { id: idOf(field), name: field.name, rows: 2, "aria-describedby": hintOf(field) });
    return {
      box: boxOf(field, labelOf(field), area),
      read: () => (area.value === "" ? null : area.value),
      write: (value) => (area.value = value ?? ""),
    };
  },

  json(field) {
    const area = el("textarea", {
      id: idOf(field), name: field.name, rows: 4, class: "code", spellcheck: "false", "aria-describedby": hintOf(field),
    });
    const settings = () => {
      if (area.value.trim() === "") return {};
      const found = JSON.parse(area.value);
      if (typeof found !== "object" || found === null || Array.isArray(found)) throw new SyntaxError();
      return found;
    };
    area.addEventListener("input", () => {
      let wrong = "";
      try {
        settings();
      } catch {
        wrong = t("error.json");
      }
      area.setCustomValidity(wrong);
      area.setAttribute("aria-invalid", String(Boolean(wrong)));
    });
    return {
      box: boxOf(field, labelOf(field), area),
      read: settings,
      write: (value) => (area.value = value && Object.keys(value).length ? JSON.stringify(value, null, 2) : ""),
    };
  },
};

/** Returns {name, title} of an entry of a list of the server: a name, or an object with a name. */
export function entryOf(entry) {
  if (typeof entry !== "object") return { name: String(entry), title: String(entry) };
  const { name, title, label } = entry;
  return { ...entry, name, title: title ?? label ?? name };
}

/** Returns a random seed, so that a picture with a random seed can be made again. */
export const randomSeed = () => crypto.getRandomValues(new Uint32Array(1))[0] % MAX_SEED;
