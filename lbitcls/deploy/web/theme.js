/* Colors: the system's, or those that the user chose; before the page is drawn. */
(() => {
  let chosen = null;
  try {
    chosen = localStorage.getItem("theme");
  } catch {} // storage is blocked: the system's colors
  if (chosen === "dark" || chosen === "light") document.documentElement.dataset.theme = chosen;
})();
