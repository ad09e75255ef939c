"use strict";
(function () {
  const root = document.documentElement;
  const systemDark = window.matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : systemDark.matches);
  const plots = Array.from(document.querySelectorAll(".plot"));
  const drawn = new Set();
  let figures = {};

  // Script and data are packed, which makes a page of five megabytes one of two.
  async function unpacked(id) {
    const packed = atob(document.getElementById(id).textContent);
    const bytes = new Uint8Array(packed.length);
    for (let k = 0; k < packed.length; k++) bytes[k] = packed.charCodeAt(k);
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  }
  async function load() {
    const data = JSON.parse(await unpacked("data"));
    // Arrays that several figures show are written once; "@" is no character of base64.
    const whole = (key, value) => (key === "bdata" && value[0] === "@" ? data.shared[Number(value.slice(1))] : value);
    figures = Object.fromEntries(Object.entries(data.figures).map(
      ([name, figure]) => [name, JSON.parse(JSON.stringify(figure), whole)]));
    if (document.getElementById("plotly")) {
      const script = document.createElement("script");
      script.textContent = await unpacked("plotly");
      document.head.append(script);
    }
  }

  // Colors that depend on the page; everything else is fixed by the figure.
  function ink(layout, dark) {
    const color = dark ? "#e4e8ec" : "#1b1f24";
    const changes = { "font.color": color };
    for (const key of Object.keys(layout)) {
      if (/^scene\d*$/.test(key)) for (const axis of ["xaxis", "yaxis", "zaxis"]) changes[`${key}.${axis}.color`] = color;
      if (/^[xy]axis\d*$/.test(key)) changes[`${key}.linecolor`] = color;
    }
    return changes;
  }
  function recolor(dark) {
    for (const plot of drawn) window.Plotly.relayout(plot, ink(plot.layout, dark));
  }

  function fit(layout, width) {
    if (width < 480) {
      if (layout.margin.l) layout.margin = Object.assign({}, layout.margin, { l: 44, r: 8 });
      layout.font = Object.assign({}, layout.font, { size: 10 });
      for (const key of Object.keys(layout)) {
        const eye = /^scene\d*$/.test(key) && layout[key].camera && layout[key].camera.eye;
        if (eye) for (const axis of ["x", "y", "z"]) eye[axis] *= 1.25; // room for the labels
      }
    }
  }

  // Figures with the same link show their surfaces from the same side.
  let following = false;
  function follow(source) {
    source.on("plotly_relayouting", (change) => turn(source, change));
    source.on("plotly_relayout", (change) => turn(source, change));
  }
  function turn(source, change) {
    const camera = change["scene.camera"];
    if (!camera || following) return;
    following = true;
    const others = plots.filter((plot) => plot !== source && drawn.has(plot) && plot.dataset.link === source.dataset.link);
    Promise.all(others.map((plot) => window.Plotly.relayout(plot, { "scene.camera": camera }))).then(
      () => { following = false; },
      () => { following = false; });
  }

  // The keyboard turns surfaces too.
  function turned(plot, event) {
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
    if (!way) return;
    event.preventDefault();
    const camera = JSON.parse(JSON.stringify(plot.layout.scene.camera));
    const { x, y, z } = camera.eye;
    const far = Math.hypot(x, y, z);
    const around = Math.atan2(y, x) + way[0] * 0.15;
    const up = Math.min(1.5, Math.max(-1.5, Math.asin(z / far) + way[1] * 0.1));
    camera.eye = { x: far * Math.cos(up) * Math.cos(around), y: far * Math.cos(up) * Math.sin(around), z: far * Math.sin(up) };
    window.Plotly.relayout(plot, { "scene.camera": camera });
  }

  // A click on a legend hides its curves in every figure that the legend speaks of.
  function toggled(entry) {
    const shown = entry.getAttribute("aria-pressed") !== "true";
    entry.setAttribute("aria-pressed", String(shown));
    for (const plot of entry.closest(".row, figure").querySelectorAll(".plot")) {
      if (!drawn.has(plot)) continue;
      const own = [];
      plot.data.forEach((trace, number) => {
        const name = (trace.legendgroup || trace.name || "").replace(/ \(\d+\)$/, "");
        if (name === entry.dataset.curve || (trace.name || "").replace(/ \(\d+\)$/, "") === entry.dataset.curve) own.push(number);
      });
      if (own.length) window.Plotly.restyle(plot, { visible: shown }, own);
    }
  }

  // What moves has a slider of the page, which the keyboard and screen readers reach; plotly's own does neither.
  function moving(plot, frames) {
    const names = frames.map((frame) => frame.name);
    const about = plot.getAttribute("aria-label");
    const bar = document.createElement("div");
    bar.className = "frames";
    bar.setAttribute("role", "group");
    bar.setAttribute("aria-label", `Frames of: ${about}`);
    const play = Object.assign(document.createElement("button"), { type: "button", textContent: "play" });
    const range = Object.assign(document.createElement("input"), { type: "range", min: 0, max: names.length - 1, step: 1 });
    range.value = names.length - 1;
    range.setAttribute("aria-label", "Step of training");
    const shown = document.createElement("output");
    let timer = null;
    function go() {
      const place = Number(range.value);
      shown.textContent = `step ${names[place]}`;
      range.setAttribute("aria-valuetext", `step ${names[place]}, frame ${place + 1} of ${names.length}`);
      const at = { mode: "immediate", frame: { duration: 0, redraw: true }, transition: { duration: 0 } };
      return window.Plotly.animate(plot, [names[place]], at);
    }
    function pause() {
      clearInterval(timer);
      timer = null;
      play.textContent = "play";
    }
    play.addEventListener("click", () => {
      if (timer) return pause();
      if (Number(range.value) === names.length - 1) range.value = 0;
      play.textContent = "pause";
      timer = setInterval(() => {
        if (Number(range.value) >= names.length - 1) return pause();
        range.value = Number(range.value) + 1;
        go();
      }, 120);
      go();
    });
    range.addEventListener("input", () => { pause(); go(); });
    shown.textContent = `step ${names.at(-1)}`;
    range.setAttribute("aria-valuetext", `step ${names.at(-1)}, frame ${names.length} of ${names.length}`);
    bar.append(play, range, shown);
    plot.after(bar);
  }

  async function draw(plot) {
    const figure = figures[plot.id];
    fit(figure.layout, plot.clientWidth);
    if (figure.frames) for (const own of ["sliders", "updatemenus"]) delete figure.layout[own];
    await window.Plotly.newPlot(plot, figure.data, figure.layout, { responsive: true, displaylogo: false, displayModeBar: "hover" });
    if (figure.frames) await window.Plotly.addFrames(plot, figure.frames);
    if (figure.frames) moving(plot, figure.frames);
    // Tools for the mouse: by the keyboard they would be ten stops in every figure.
    plot.querySelectorAll(".modebar-btn").forEach((button) => button.setAttribute("tabindex", "-1"));
    drawn.add(plot);
    await window.Plotly.relayout(plot, ink(plot.layout, isDark()));
    if (plot.dataset.link) {
      follow(plot);
      plot.addEventListener("keydown", (event) => turned(plot, event));
    }
  }
  for (const entry of document.querySelectorAll(".entry")) entry.addEventListener("click", () => toggled(entry));

  // Tables that are wider than the page say so.
  function measure() {
    for (const wide of document.querySelectorAll(".wide")) {
      const table = wide.querySelector(".table");
      wide.querySelector(".hint").hidden = table.scrollWidth <= table.clientWidth + 1;
    }
  }
  window.addEventListener("resize", measure);
  for (const part of document.querySelectorAll("details")) part.addEventListener("toggle", measure);
  measure();

  for (const box of document.querySelectorAll("[data-toggle]")) {
    box.addEventListener("change", () => {
      for (const part of document.querySelectorAll("[data-run]")) {
        if (part.dataset.run !== box.dataset.toggle) continue;
        part.hidden = !box.checked;
        if (box.checked) part.querySelectorAll(".plot").forEach((plot) => drawn.has(plot) && window.Plotly.Plots.resize(plot));
      }
    });
  }
  document.getElementById("theme").addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    recolor(isDark());
  });
  systemDark.addEventListener("change", () => recolor(isDark()));
  // Paper is narrower than most screens, and figures do not notice that they are printed: about 700 pixels for A4
  // and letter, half of it in a gallery. Lower ones leave less of a page blank where the next row does not fit.
  window.addEventListener("beforeprint", () => {
    recolor(false);
    for (const plot of drawn) {
      const [width, most] = plot.closest(".gallery") ? [335, 250] : [680, 300];
      // A surface is drawn a moment later than asked, too late for the printer: it is shrunk as it is.
      if (plot.querySelector(".gl-container canvas")) {
        plot.style.zoom = Math.min(1, width / plot.clientWidth);
        continue;
      }
      plot.dataset.height ||= plot.style.height;
      const height = Math.min(parseInt(plot.style.height), most);
      plot.style.height = `${height}px`;
      window.Plotly.relayout(plot, { width, height });
    }
  });
  window.addEventListener("afterprint", () => {
    for (const plot of drawn) {
      plot.style.zoom = "";
      plot.style.height = plot.dataset.height || plot.style.height;
      window.Plotly.relayout(plot, { width: null, height: null, autosize: true });
    }
    recolor(isDark());
  });

  // A printer begins once the page is loaded. A document that is open inside it keeps it loading until all is drawn.
  function held() {
    const frame = document.body.appendChild(Object.assign(document.createElement("iframe"), { hidden: true }));
    frame.contentDocument.open();
    return () => {
      frame.contentDocument.close();
      frame.remove();
    };
  }

  // One after the other, so that the page can be read meanwhile.
  (async () => {
    const release = plots.length ? held() : () => {};
    try {
      if (plots.length) await load();
      for (const plot of plots) {
        await draw(plot);
        await new Promise((resolve) => setTimeout(resolve, 0));
      }
    } catch (problem) {
      const left = plots.filter((plot) => !drawn.has(plot));
      for (const plot of left) plot.textContent = "This browser cannot draw the figure: it needs one of 2023 or later.";
      throw problem;
    } finally {
      release();
    }
    root.dataset.ready = "true";
  })();
})();
