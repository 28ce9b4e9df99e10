// Before the first paint, so that nothing flashes; the rest of the theme button is in frame.js.
try {
  const theme = localStorage.getItem("mobileo.theme");
  if (theme) document.documentElement.dataset.theme = JSON.parse(theme);
} catch { /* without storage the system's theme is shown */ }
