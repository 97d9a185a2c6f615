// What a screen reader is told of the theme's own parts, where the theme says nothing or something else than it shows.
"use strict";

(() => {
  document.querySelectorAll(".bd-sidebar-primary .sidebar-primary-item:has(> .navbar-brand)").forEach((item) => {
    item.setAttribute("role", "navigation");
    item.setAttribute("aria-label", "Home");
  });
  document.querySelectorAll(".bd-sidebar-primary details > summary").forEach((fold) => {
    const link = fold.closest("li").querySelector("a");
    fold.setAttribute("aria-label", `Pages of ${link.textContent.trim()}`);
  });

  // The button shows one of three icons, and its label names the mode that the icon stands for.
  const root = document.documentElement;
  const shown = { light: "Light", dark: "Dark", auto: "System Settings" };
  const name = () => document.querySelectorAll(".theme-switch-button").forEach((button) => {
    button.setAttribute("aria-label", `Color mode: ${shown[root.dataset.mode] || shown.auto}`);
  });
  name();
  new MutationObserver(name).observe(root, { attributes: true, attributeFilter: ["data-mode"] });
})();
