// The page's own script: theme, pictures drawn when they come into view, copying, printing. It loads nothing.
(() => {
  "use strict";
  const root = document.documentElement;
  const preference = matchMedia("(prefers-color-scheme: dark)");
  const config = {
    responsive: true,
    displaylogo: false,
    showSendToCloud: false, // plotly.js 4 offers to upload a picture unless told otherwise
    plotlyServerURL: "",
    modeBarButtonsToRemove: ["sendChartToCloud", "sendDataToCloud", "lasso2d", "select2d", "zoomIn2d", "zoomOut2d", "autoScale2d"],
    toImageButtonOptions: { format: "svg" },
  };
  const themes = {
    light: {
      ink: "#4d5763", hover: "#ffffff", edge: "#c3cad2", text: "#1b2027",
      scales: {
        sequential: [[0, "#eef2f6"], [0.3, "#b3d0ea"], [0.65, "#3a86c8"], [1, "#08305f"]],
        diverging: [[0, "#1b6cb5"], [0.5, "#f3f4f6"], [1, "#d2600a"]],
      },
    },
    dark: {
      ink: "#a3aeba", hover: "#232a33", edge: "#4a5563", text: "#e3e7ec",
      scales: {
        sequential: [[0, "#1d242d"], [0.35, "#1f5688"], [0.7, "#4b9fe6"], [1, "#e6f3ff"]],
        diverging: [[0, "#4ba0ec"], [0.5, "#232a33"], [1, "#f08a3c"]],
      },
    },
  };

  // A choice in the address (#dark, #light) wins over a remembered one, which wins over the system's.
  const asked = /^#(dark|light)$/.exec(location.hash);
  if (asked) root.dataset.theme = asked[1];
  else {
    try {
      const remembered = localStorage.getItem("mechinterp-theme");
      if (remembered === "dark" || remembered === "light") root.dataset.theme = remembered;
    } catch { /* a browser may keep no memory for local files; the system's choice holds then */ }
  }
  const current = () => root.dataset.theme || (preference.matches ? "dark" : "light");

  const dressed = (figure, name, width) => {
    const theme = themes[name];
    const copy = structuredClone(figure);
    for (const trace of copy.data) {
      const scale = trace.meta && theme.scales[trace.meta.colours];
      if (scale) trace.colorscale = scale;
    }
    const layout = copy.layout;
    layout.font = { ...layout.font, color: theme.ink };
    layout.hoverlabel = { ...layout.hoverlabel, bgcolor: theme.hover, bordercolor: theme.edge, font: { color: theme.text } };
    layout.modebar = { bgcolor: "rgba(0,0,0,0)", color: theme.edge, activecolor: theme.ink };
    if (width) layout.width = width;
    if ((width || innerWidth) < 620) layout.font.size = 11;
    return copy;
  };

  const draw = (plot, name = current(), width = 0) => {
    plot.figure ??= JSON.parse(plot.nextElementSibling.textContent);
    const { data, layout } = dressed(plot.figure, name, width);
    Plotly.react(plot, data, layout, config);
    plot.dataset.drawn = "";
  };
  const drawn = () => document.querySelectorAll(".plot[data-drawn]");
  const redress = () => drawn().forEach((plot) => draw(plot));

  const copyText = async (button) => {
    const code = button.parentElement.querySelector("code");
    try {
      await navigator.clipboard.writeText(code.textContent);
    } catch { // not allowed for local files everywhere: select it, so that the reader's own shortcut copies it
      getSelection().selectAllChildren(code);
      document.execCommand("copy");
    }
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  };

  document.addEventListener("DOMContentLoaded", () => {
    document.getElementById("theme").addEventListener("click", () => {
      root.dataset.theme = current() === "dark" ? "light" : "dark";
      try { localStorage.setItem("mechinterp-theme", root.dataset.theme); } catch { /* see above */ }
      redress();
    });
    preference.addEventListener("change", redress);
    document.querySelectorAll("button.copy").forEach((b) => b.addEventListener("click", () => copyText(b)));

    const watcher = new IntersectionObserver((seen) => {
      for (const { isIntersecting, target } of seen) {
        if (!isIntersecting) continue;
        watcher.unobserve(target);
        draw(target);
      }
    }, { rootMargin: "900px" });
    document.querySelectorAll(".plot").forEach((plot) => watcher.observe(plot));
  });

  // Paper is white, narrow, and shows what is folded on the screen.
  let folded = [];
  addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll("details:not([open])")];
    folded.forEach((d) => { d.open = true; });
    document.querySelectorAll(".plot").forEach((plot) => draw(plot, "light", 660));
  });
  addEventListener("afterprint", () => {
    folded.forEach((d) => { d.open = false; });
    redress();
  });
})();
