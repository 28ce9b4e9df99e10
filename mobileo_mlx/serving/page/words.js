// Numbers as people read them.

export function seconds(value) {
  if (value < 10) return `${value.toFixed(value < 1 ? 2 : 1)} s`;
  if (value < 90) return `${Math.round(value)} s`;
  const minutes = Math.floor(value / 60), rest = Math.round(value % 60);
  return minutes < 60 ? `${minutes} min ${rest} s` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

export const left = (value) => (value < 1 ? "less than a second left" : `about ${seconds(Math.ceil(value))} left`);

export function bytes(value) {
  if (value >= 1e9) return `${(value / 1e9).toFixed(1)} GB`;
  return value >= 1e6 ? `${Math.round(value / 1e6)} MB` : `${Math.max(1, Math.round(value / 1e3))} kB`;
}

export const count = (n, one, many = `${one}s`) => `${n} ${n === 1 ? one : many}`;

export function when(timestamp) {
  const date = new Date(timestamp * 1000);
  const today = new Date().toDateString() === date.toDateString();
  return date.toLocaleString(undefined, today ? { timeStyle: "short" } : { dateStyle: "medium", timeStyle: "short" });
}

/** The name of an option as a label. */
export function label(name) {
  const words = name.replaceAll("_", " ").replace("top p", "top-p");
  return words[0].toUpperCase() + words.slice(1);
}
