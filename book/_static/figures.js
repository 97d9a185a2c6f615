// On a narrow page letters of a drawn figure stay legible: the figure keeps a least width, and scrolls in its own box.
// A box that scrolls, of a figure or of a table, says so to the eye, and can be reached and is named for the keyboard.
"use strict";

(() => {
  const LEAST = 0.75; // of what was drawn: letters of 9 points, at 100 dots an inch, are then 9 pixels high
  const COLUMN = 700; // pixels, which a figure need not exceed
  const MARGIN = 8; // pixels: what is hidden of a table is then the margin of its last column

  const tell = (box, what) => {
    const hint = document.createElement("p");
    hint.className = "kit-wide-hint";
    hint.textContent = `↔ The ${what} goes on: scroll it sideways.`;
    box.after(hint);
    const look = () => {
      const wide = box.scrollWidth > box.clientWidth + MARGIN;
      hint.hidden = !wide;
      if (wide) {
        box.tabIndex = 0;
        box.setAttribute("role", "group");
        box.setAttribute("aria-label", `A ${what} that scrolls sideways`);
      } else {
        ["tabindex", "role", "aria-label"].forEach((name) => box.removeAttribute(name));
      }
    };
    look();
    new ResizeObserver(look).observe(box);
  };

  document.querySelectorAll(".bd-article figure img, .bd-article .cell_output img").forEach((image) => {
    const shown = image.closest("a") ?? image;
    const box = document.createElement("div");
    box.className = "kit-wide";
    shown.replaceWith(box);
    box.append(shown);
    const measure = () => {
      image.style.minWidth = `${Math.min(LEAST * image.naturalWidth, COLUMN)}px`;
      tell(box, "figure");
    };
    if (image.complete) measure();
    else image.addEventListener("load", measure);
  });

  document.querySelectorAll(".bd-article :is(.pst-scrollable-table-container, .cell_output > .text_html):has(table)")
    .forEach((box) => tell(box, "table"));
})();
