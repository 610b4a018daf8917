// Draw the formulas: Sphinx has left them as TeX between \( and \) or \[ and \].
if (window.katex) {
  for (const place of document.querySelectorAll(".math")) {
    const source = place.textContent.trim();
    const displayMode = source.startsWith("\\[");
    katex.render(source.slice(2, -2), place, { displayMode, throwOnError: false });
    keepTogether(place);
  }
}

// No new line between a short formula and the comma behind it.
function keepTogether(place) {
  const next = place.nextSibling;
  const short = place.querySelectorAll(".katex-base").length === 1;
  if (short && next?.nodeType === Node.TEXT_NODE && /^[,.;:!?)]/.test(next.data)) {
    place.append(next.data[0]);
    next.data = next.data.slice(1);
    place.style.whiteSpace = "nowrap";
  }
}
