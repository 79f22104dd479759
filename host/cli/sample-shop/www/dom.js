// Elements without innerHTML: what a merchant or a plugin wrote is only ever text here.

/** Makes an element. `props` are properties; `class`, `aria-*`, `data-*`, `role` and `for` are attributes; `on*` are listeners. */
export function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (/^(class|role|for|aria-.*|data-.*)$/.test(name)) node.setAttribute(name, value === true ? "true" : value);
    else node[name] = value;
  }
  append(node, children);
  return node;
}

function append(node, children) {
  for (const child of children.flat(Infinity)) {
    if (child === undefined || child === null || child === false) continue;
    node.append(child);
  }
}

/** Puts `children` in the place of whatever `node` holds, and keeps the keyboard's and the eye's place where the new content has it too. */
export function fill(node, ...children) {
  const kept = node.contains(document.activeElement) ? document.activeElement.dataset.focus : undefined;
  const scrolled = node.querySelector("[data-scroll]")?.scrollTop ?? 0;
  node.replaceChildren();
  append(node, children);
  const scroller = node.querySelector("[data-scroll]");
  if (scroller) scroller.scrollTop = scrolled;
  if (kept) {
    const again = [...node.querySelectorAll("[data-focus]")].find((n) => n.dataset.focus === kept);
    (again && !again.disabled ? again : node.querySelector("[data-fallback-focus]"))?.focus();
  }
}

const formats = new Map();

/** Integer minor units as the shopper reads money. */
export function money(minor, currency) {
  let format = formats.get(currency);
  if (!format) {
    format = new Intl.NumberFormat(document.documentElement.lang, { style: "currency", currency });
    formats.set(currency, format);
  }
  const decimals = format.resolvedOptions().maximumFractionDigits;
  return format.format(minor / 10 ** decimals);
}

let clearing;

/** Says something to everyone: a moment on the screen, and in the live region for screen readers. */
export function say(text) {
  document.getElementById("live").textContent = text;
  const toast = document.getElementById("toast");
  toast.textContent = text;
  toast.hidden = false;
  clearTimeout(clearing);
  clearing = setTimeout(() => (toast.hidden = true), 3500);
}
