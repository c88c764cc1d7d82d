"use strict";
// The page's own state: theme, charts drawn when they come into view, where the reader is.
const page = {
  root: document.documentElement,
  redraws: [],
  colour(name) { return getComputedStyle(this.root).getPropertyValue(name).trim(); },
  palette() { return [0, 1, 2, 3, 4, 5, 6, 7].map((i) => this.colour(`--p${i}`)); },
  json(id) { return JSON.parse(document.getElementById(id).textContent); },
};

page.plotly = (async () => {
  const letters = atob(document.getElementById("plotly").textContent);
  const packed = new Uint8Array(letters.length);
  for (let i = 0; i < letters.length; i++) packed[i] = letters.charCodeAt(i);
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(stream).text();
  document.head.append(script);
  return window.Plotly;
})();

page.layout = (layout) => {
  const title = { font: { size: innerWidth < 600 ? 11 : 13 }, standoff: 8 };
  const axis = { tickangle: 0, gridcolor: page.colour("--grid"), linecolor: page.colour("--line"), zeroline: false, automargin: true };
  return {
    ...layout,
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: innerWidth < 600 ? 11 : 13, color: page.colour("--soft") },
    margin: { l: 52, r: 12, t: 24, b: 40 },
    xaxis: { ...axis, ...layout.xaxis, title: { ...title, ...layout.xaxis?.title } },
    yaxis: { ...axis, ...layout.yaxis, title: { ...title, ...layout.yaxis?.title } },
    hoverlabel: { bgcolor: page.colour("--card"), bordercolor: page.colour("--line"), font: { color: page.colour("--ink") } },
    dragmode: false,
  };
};

page.config = { displayModeBar: false, displaylogo: false, responsive: true };

page.draw = async (element) => {
  const Plotly = await page.plotly;
  const figure = page.json(`figure-${element.dataset.figure}`);
  const palette = page.palette();
  for (const trace of figure.data) {
    const colour = palette[trace.meta.colour % palette.length];
    trace.marker = { ...trace.marker, color: colour };
    if (trace.line) trace.line.color = colour;
    if (trace.error_y) trace.error_y.color = colour;
  }
  await Plotly.react(element, figure.data, page.layout(figure.layout), page.config);
  element.dataset.drawn = "yes";
};

const coming = new IntersectionObserver((entries) => {
  for (const entry of entries.filter((e) => e.isIntersecting)) {
    coming.unobserve(entry.target);
    page.draw(entry.target);
  }
}, { rootMargin: "400px" });
for (const element of document.querySelectorAll("[data-figure]")) coming.observe(element);

page.repaint = () => {
  document.querySelectorAll("[data-drawn]").forEach(page.draw);
  page.redraws.forEach((redraw) => redraw());
};
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", page.repaint);

const themes = ["auto", "light", "dark"];
const button = document.getElementById("theme");
const setTheme = (name) => {
  if (name === "auto") delete page.root.dataset.theme; else page.root.dataset.theme = name;
  button.querySelector("span").textContent = name;
  button.setAttribute("aria-label", `Colours: ${name}`);
  page.repaint();
};
button.addEventListener("click", () => {
  const now = page.root.dataset.theme || "auto";
  setTheme(themes[(themes.indexOf(now) + 1) % themes.length]);
});

// Paper gets what is folded and what nobody has scrolled to, in dark ink.
const onScreen = { theme: "auto", folded: [] };
addEventListener("beforeprint", () => {
  onScreen.theme = page.root.dataset.theme || "auto";
  onScreen.folded = [...document.querySelectorAll("details:not([open])")];
  onScreen.folded.forEach((details) => { details.open = true; });
  setTheme("light");
  document.querySelectorAll("[data-figure]:not([data-drawn])").forEach(page.draw);
});
addEventListener("afterprint", () => {
  onScreen.folded.forEach((details) => { details.open = false; });
  setTheme(onScreen.theme);
});

const bar = document.querySelector("nav ol");
const links = new Map([...document.querySelectorAll("nav a")].map((a) => [a.hash.slice(1), a]));
const reading = new IntersectionObserver((entries) => {
  for (const entry of entries.filter((e) => e.isIntersecting)) {
    links.forEach((link) => link.classList.remove("here"));
    const link = links.get(entry.target.getAttribute("aria-labelledby"));
    link?.classList.add("here");
    if (link) bar.scrollLeft = link.offsetLeft - bar.offsetLeft - (bar.clientWidth - link.offsetWidth) / 2;
  }
}, { rootMargin: "-30% 0px -65% 0px" });
document.querySelectorAll("section").forEach((section) => reading.observe(section));
