// What has been read is kept in this browser, and nowhere else. Without storage nothing is shown.
"use strict";

(() => {
  const KEY = "kit-read";
  let read;
  try {
    read = new Set(JSON.parse(localStorage.getItem(KEY) || "[]"));
  } catch {
    return;
  }
  const keep = () => localStorage.setItem(KEY, JSON.stringify([...read]));

  const end = document.querySelector("p.kit-read");
  if (end) {
    const label = document.createElement("label");
    const box = document.createElement("input");
    box.type = "checkbox";
    box.checked = read.has(end.dataset.chapter);
    box.addEventListener("change", () => {
      if (box.checked) read.add(end.dataset.chapter);
      else read.delete(end.dataset.chapter);
      keep();
    });
    label.append(box, " I have read this chapter");
    end.append(label);
    end.hidden = false;
  }

  const progress = document.querySelector(".kit-progress");
  if (progress) {
    const links = [...document.querySelectorAll("ul.kit-chapters a, .kit-chapters a")];
    const show = () => {
      let count = 0;
      links.forEach((link) => {
        const chapter = link.getAttribute("href").replace(/^(\.\.\/)+/, "").replace(/\.html.*$/, "");
        const done = read.has(chapter);
        count += done;
        link.parentElement.querySelector(".kit-tick")?.remove();
        if (done) {
          const tick = document.createElement("span");
          tick.className = "kit-tick";
          tick.textContent = " ✓ read";
          link.after(tick);
        }
      });
      progress.querySelector("output").textContent = `${count} of ${links.length} chapters read, as this browser remembers.`;
    };
    progress.querySelector("button").addEventListener("click", () => { read.clear(); localStorage.removeItem(KEY); show(); });
    progress.hidden = false;
    show();
  }
})();
