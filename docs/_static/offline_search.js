// Sphinx's search fetches pages for its excerpts, which browsers refuse for files: the text is in search_pages.js.
if (location.protocol === "file:") {
  const pages = new Promise((resolve) => { window.searchPages = resolve; });
  const script = document.createElement("script");
  script.src = "_static/search_pages.js";
  document.head.append(script);
  window.fetch = (url) => pages.then((found) => ({ text: () => found[url.replace("./", "")] }));
}
