// What this browser remembers between visits: the form, language and appearance. Never pictures, never a token.

const PREFIX = "sdjax.";

/** Returns what was remembered under a name, or `otherwise`. */
export function remembered(name, otherwise) {
  try {
    const text = localStorage.getItem(PREFIX + name);
    return text === null ? otherwise : JSON.parse(text);
  } catch {
    return otherwise; // no storage in this browser, or not ours
  }
}

/** Remembers a value of JSON under a name; null forgets it. */
export function remember(name, value) {
  try {
    if (value === null) localStorage.removeItem(PREFIX + name);
    else localStorage.setItem(PREFIX + name, JSON.stringify(value));
  } catch {
    // private windows have no storage: the page works without
  }
}
