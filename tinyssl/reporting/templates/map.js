"use strict";
// The map: points by group, the chosen picture beside it, and every way to move: mouse, touch, keys.
(async () => {
  const data = page.json("map-data");
  const element = document.getElementById("map");
  const panel = document.getElementById("picked");
  const legend = document.getElementById("legend");
  const faces = document.getElementById("faces");
  const count = data.x.length;
  const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "cross", "star", "x", "triangle-down"];
  const FULL = 1.08; // half the side of the whole map
  const MARGIN = 8;
  const SIZE = count < 300 ? 11 : count < 1000 ? 9 : 7;
  const state = { by: "", chosen: -1, held: false, alone: null, found: null, view: [[-FULL, FULL], [-FULL, FULL]] };

  const groupings = {
    label: { name: "label", of: (i) => data.label[i], names: [...data.classes, "no label"], there: data.classes.length > 0 },
    cluster: { name: "cluster", of: (i) => data.cluster[i], names: Array.from({ length: Math.max(...data.cluster) + 1 }, (_, c) => `cluster ${c + 1}`), there: true },
    test: { name: "split", of: (i) => data.test[i], names: ["training", "test"], there: data.test !== null },
    odd: { name: "oddness", of: (i) => (data.odd[i] <= count / 20 ? 1 : 0), names: ["fits", "oddest 5 %"], there: true },
  };

  const members = () => {
    const grouping = groupings[state.by];
    const groups = grouping.names.map((name) => ({ name, rows: [] }));
    for (let i = 0; i < count; i++) groups[groupNumber(i)].rows.push(i);
    return groups;
  };

  const style = (number) => ({
    colour: page.palette()[number % 8],
    symbol: SYMBOLS[(number + Math.floor(number / 8)) % SYMBOLS.length],
  });

  const clear = (i) => (!state.found || state.found.has(i));

  const traces = () => {
    return members().map((group, number) => {
      const { colour, symbol } = style(number);
      const dim = state.alone !== null && state.alone !== number;
      return {
        type: "scatter", mode: "markers", hoverinfo: "none", showlegend: false,
        x: group.rows.map((i) => data.x[i]), y: group.rows.map((i) => data.y[i]), customdata: group.rows,
        marker: { size: SIZE, color: colour, symbol, opacity: group.rows.map((i) => (dim || !clear(i) ? 0.08 : 0.8)), line: { width: 0 } },
      };
    });
  };

  const groupNumber = (i) => {
    const number = groupings[state.by].of(i);
    return number < 0 ? groupings[state.by].names.length - 1 : number;
  };

  // One picture a square of the screen, moved to its middle, so that none covers another.
  const pictures = () => {
    if (!faces.checked) return { shown: [] };
    const [[x0, x1], [y0, y1]] = state.view;
    const side = 40;
    const across = (x1 - x0) / Math.max(element.clientWidth - 2 * MARGIN, 1) * side;
    const down = (y1 - y0) / Math.max(element.clientHeight - 2 * MARGIN, 1) * side;
    const taken = new Set();
    const shown = [];
    for (let i = 0; i < count; i++) {
      const [x, y] = [data.x[i], data.y[i]];
      if (x < x0 || x > x1 || y < y0 || y > y1 || !clear(i)) continue;
      if (state.alone !== null && groupNumber(i) !== state.alone) continue;
      const cell = `${Math.floor(x / across)} ${Math.floor(y / down)}`;
      if (taken.has(cell)) continue;
      taken.add(cell);
      shown.push([i, (Math.floor(x / across) + 0.5) * across, (Math.floor(y / down) + 0.5) * down]);
    }
    return { shown, across, down };
  };

  const frames = () => {
    const { shown, across, down } = pictures();
    const images = shown.map(([i, x, y]) => ({
      source: data.thumbs[i], xref: "x", yref: "y", x, y, sizex: across * 0.9, sizey: down * 0.9,
      xanchor: "center", yanchor: "middle", layer: "above", sizing: "stretch",
    }));
    const shapes = shown.map(([i, x, y]) => ({
      type: "rect", x0: x - across * 0.46, x1: x + across * 0.46, y0: y - down * 0.46, y1: y + down * 0.46,
      line: { width: 2, color: style(groupNumber(i)).colour }, layer: "above",
    }));
    return { images, shapes };
  };

  const layout = () => {
    const axis = { visible: false, fixedrange: false };
    return {
      ...page.layout({ xaxis: { ...axis, range: [...state.view[0]] }, yaxis: { ...axis, range: [...state.view[1]] } }),
      margin: { l: MARGIN, r: MARGIN, t: MARGIN, b: MARGIN }, dragmode: "pan", hovermode: "closest", hoverdistance: 24, ...frames(),
    };
  };

  const Plotly = await page.plotly;
  const paint = async () => {
    await Plotly.react(element, traces(), layout(), { ...page.config, doubleClick: false });
    placeRing();
  };

  // An element of our own: a change of plotly's traces would draw every point again.
  const ring = document.createElement("div");
  ring.className = "ring";
  element.parentElement.append(ring);
  const placeRing = () => {
    const i = state.chosen;
    ring.hidden = i < 0 || !inView(i);
    if (ring.hidden) return;
    const share = (value, [low, high]) => (value - low) / (high - low);
    ring.style.left = `${MARGIN + share(data.x[i], state.view[0]) * (element.clientWidth - 2 * MARGIN)}px`;
    ring.style.top = `${MARGIN + (1 - share(data.y[i], state.view[1])) * (element.clientHeight - 2 * MARGIN)}px`;
  };

  // Buttons that are written anew when one is pressed: or the keys would be lost.
  const focusAgain = (list, place) => list.querySelectorAll("button")[place]?.focus({ preventScroll: true });

  const line = (text) => {
    const p = document.createElement("p");
    p.textContent = text;
    return p;
  };

  const picture = (i) => {
    const image = document.createElement("img");
    image.src = data.thumbs[i];
    image.alt = data.names[i];
    return image;
  };

  const about = (i) => {
    const told = [];
    if (data.label[i] >= 0) told.push(data.classes[data.label[i]]);
    told.push(`cluster ${data.cluster[i] + 1}`);
    if (data.test !== null) told.push(data.test[i] ? "test" : "training");
    return told.join(" · ");
  };

  const show = (i) => {
    const big = picture(i);
    big.className = "big";
    const name = document.createElement("h3");
    name.textContent = data.names[i];
    const near = document.createElement("div");
    near.className = "near";
    data.near[i].forEach((other, place) => {
      const one = document.createElement("button");
      one.type = "button";
      one.title = data.names[other];
      const cosine = data.cosines[i][place].toFixed(3);
      one.setAttribute("aria-label", `${data.names[other]}, cosine ${cosine}`);
      one.append(picture(other), cosine);
      one.addEventListener("click", () => { choose(other, true); focusAgain(panel, place); });
      near.append(one);
    });
    const words = document.createElement("div");
    words.append(name, line(about(i)), line("Nearest, with cosine:"));
    panel.replaceChildren(big, words, near);
    panel.dataset.row = i;
  };

  const inView = (i) => data.x[i] > state.view[0][0] && data.x[i] < state.view[0][1] && data.y[i] > state.view[1][0] && data.y[i] < state.view[1][1];

  const choose = (i, hold) => {
    state.chosen = i;
    state.held = hold;
    show(i);
    if (!inView(i)) {
      const half = state.view.map(([low, high]) => (high - low) / 2);
      state.view = [[data.x[i] - half[0], data.x[i] + half[0]], [data.y[i] - half[1], data.y[i] + half[1]]];
      paint();
    }
    placeRing();
  };

  const release = () => {
    state.held = false;
    state.chosen = -1;
    placeRing();
  };

  // Keeps the point (fx, fy), in shares of the map from the lower left, where it is.
  const zoom = (factor, fx = 0.5, fy = 0.5) => {
    state.view = state.view.map(([low, high], axis) => {
      const share = axis ? fy : fx;
      const length = Math.min(Math.max((high - low) * factor, 0.01), 2 * FULL);
      const start = low + (high - low - length) * share;
      return [start, start + length];
    });
    if (state.view[0][1] - state.view[0][0] >= 2 * FULL) state.view = [[-FULL, FULL], [-FULL, FULL]];
    paint();
  };

  const toward = (dx, dy) => {
    const from = state.chosen < 0 ? [0, 0] : [data.x[state.chosen], data.y[state.chosen]];
    let best = -1, least = Infinity;
    for (let i = 0; i < count; i++) {
      const [x, y] = [data.x[i] - from[0], data.y[i] - from[1]];
      const along = x * dx + y * dy, aside = Math.abs(x * dy) + Math.abs(y * dx);
      if (i === state.chosen || along <= 0 || aside > along) continue;
      const cost = along + 2 * aside;
      if (cost < least) [best, least] = [i, cost];
    }
    if (best >= 0) choose(best, true);
  };

  const keys = {
    ArrowLeft: () => toward(-1, 0), ArrowRight: () => toward(1, 0), ArrowUp: () => toward(0, 1), ArrowDown: () => toward(0, -1),
    "+": () => zoom(0.6), "=": () => zoom(0.6), "-": () => zoom(1 / 0.6), 0: () => zoom(1e9),
    Enter: () => { if (state.chosen >= 0) state.held = !state.held; }, Escape: release,
  };
  element.addEventListener("keydown", (event) => {
    if (!(event.key in keys) || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    keys[event.key]();
  });
  element.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && document.activeElement !== element) return; // or the page could not be scrolled past
    event.preventDefault();
    const box = element.getBoundingClientRect();
    zoom(event.deltaY < 0 ? 0.8 : 1.25, (event.clientX - box.left) / box.width, 1 - (event.clientY - box.top) / box.height);
  }, { passive: false });
  document.getElementById("zoom-in").addEventListener("click", () => zoom(0.6));
  document.getElementById("zoom-out").addEventListener("click", () => zoom(1 / 0.6));
  document.getElementById("zoom-all").addEventListener("click", () => zoom(1e9));
  faces.addEventListener("change", paint);

  document.getElementById("find").addEventListener("input", (event) => {
    const wanted = event.target.value.trim().toLowerCase();
    const rows = wanted ? data.names.flatMap((name, i) => (name.toLowerCase().includes(wanted) ? [i] : [])) : [];
    state.found = wanted ? new Set(rows) : null;
    paint();
    if (rows.length) choose(rows[0], true);
    else if (wanted) panel.replaceChildren(line("No file name holds this text."));
  });

  const mark = (number) => {
    const { colour, symbol } = style(number);
    const shapes = {
      circle: "M6 1a5 5 0 1 0 .01 0z", square: "M1.5 1.5h9v9h-9z", diamond: "M6 0l6 6-6 6-6-6z", "triangle-up": "M6 1l6 10H0z",
      "triangle-down": "M6 11L0 1h12z", cross: "M4 0h4v4h4v4H8v4H4V8H0V4h4z", x: "M2 0l4 4 4-4 2 2-4 4 4 4-2 2-4-4-4 4-2-2 4-4-4-4z",
      star: "M6 0l1.8 4.2 4.2.3-3.2 2.8 1 4.5L6 9.3l-3.8 2.5 1-4.5L0 4.5l4.2-.3z",
    };
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("width", 12); svg.setAttribute("height", 12); svg.setAttribute("aria-hidden", "true");
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    path.setAttribute("d", shapes[symbol]); path.setAttribute("fill", colour);
    svg.append(path);
    return svg;
  };

  const writeLegend = () => {
    const groups = members().map((group, number) => ({ ...group, number })).filter((group) => group.rows.length);
    legend.replaceChildren(...groups.map(({ name, rows, number }, place) => {
      const entry = document.createElement("li");
      const one = document.createElement("button");
      one.type = "button";
      one.setAttribute("aria-pressed", state.alone === number);
      one.append(mark(number), `${name} (${rows.length.toLocaleString("en")})`);
      one.addEventListener("click", () => {
        state.alone = state.alone === number ? null : number;
        writeLegend();
        focusAgain(legend, place);
        paint();
      });
      entry.append(one);
      return entry;
    }));
  };

  const select = document.getElementById("colour-by");
  for (const [key, grouping] of Object.entries(groupings)) {
    if (!grouping.there) continue;
    const option = document.createElement("option");
    option.value = key;
    option.textContent = grouping.name;
    select.append(option);
  }
  const colourBy = () => {
    state.by = select.value;
    state.alone = null;
    writeLegend();
    return paint();
  };
  select.addEventListener("change", colourBy);
  page.redraws.push(() => { writeLegend(); paint(); });

  await colourBy();
  choose(data.start, false);
  element.on("plotly_hover", (event) => { if (!state.held) choose(event.points[0].customdata, false); });
  element.on("plotly_click", (event) => choose(event.points[0].customdata, true));
  element.on("plotly_relayout", (change) => {
    if (!("xaxis.range[0]" in change)) return;
    const { xaxis, yaxis } = element.layout;
    state.view = [[...xaxis.range], [...yaxis.range]];
    if (faces.checked) paint();
    placeRing();
  });
  element.on("plotly_relayouting", () => { ring.hidden = true; });
  addEventListener("resize", placeRing);
  element.dataset.ready = "yes";
})();
