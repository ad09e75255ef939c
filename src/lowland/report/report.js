"use strict";
(function () {
  const root = document.documentElement;
  const systemDark = window.matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : systemDark.matches);
  const plots = Array.from(document.querySelectorAll(".plot"));
  const drawn = new Set();
  const shared = JSON.parse((document.getElementById("shared") || { textContent: "[]" }).textContent);
  // Arrays that several figures show are written once; "@" is no character of base64.
  const whole = (key, value) => (key === "bdata" && value[0] === "@" ? shared[Number(value.slice(1))] : value);

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
      layout.margin = Object.assign({}, layout.margin, { l: 44, r: 8 });
      layout.font = Object.assign({}, layout.font, { size: 10 });
      for (const key of Object.keys(layout)) {
        const eye = /^scene\d*$/.test(key) && layout[key].camera && layout[key].camera.eye;
        if (eye) for (const axis of ["x", "y", "z"]) eye[axis] *= 1.6; // room for the labels
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

  async function draw(plot) {
    const source = document.querySelector(`script[data-for="${plot.id}"]`);
    const figure = JSON.parse(source.textContent, whole);
    fit(figure.layout, plot.clientWidth);
    await window.Plotly.newPlot(plot, figure.data, figure.layout, { responsive: true, displaylogo: false, displayModeBar: "hover" });
    if (figure.frames) await window.Plotly.addFrames(plot, figure.frames);
    drawn.add(plot);
    await window.Plotly.relayout(plot, ink(plot.layout, isDark()));
    if (plot.dataset.link) follow(plot);
  }

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
  // and letter, half of it in a gallery.
  window.addEventListener("beforeprint", () => {
    recolor(false);
    for (const plot of drawn) {
      const width = plot.closest(".gallery") ? 335 : 680;
      // A surface is drawn a moment later than asked, too late for the printer: it is shrunk as it is.
      if (plot.querySelector(".gl-container canvas")) plot.style.zoom = Math.min(1, width / plot.clientWidth);
      else window.Plotly.relayout(plot, { width });
    }
  });
  window.addEventListener("afterprint", () => {
    for (const plot of drawn) {
      plot.style.zoom = "";
      window.Plotly.relayout(plot, { width: null, autosize: true });
    }
    recolor(isDark());
  });

  // One after the other, so that the page can be read meanwhile.
  (async () => {
    for (const plot of plots) {
      await draw(plot);
      await new Promise((resolve) => setTimeout(resolve, 0));
    }
    root.dataset.ready = "true";
  })();
})();
