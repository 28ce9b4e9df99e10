// What the server says of itself, once; everything that the page offers is derived from it.

import { get } from "./api.js";

export const info = {};

export async function loadInfo() {
  Object.assign(info, await get("/v1/info"));
}

export const modelName = () => info.model?.id ?? "";
/** What a task takes, as far as this server allows. */
export const taskOptions = (task) => info.capabilities.tasks[task].map((option) =>
  (option.name === "steps" ? { ...option, maximum: Math.min(option.maximum, limit("max_steps")) } : option));
export const defaultSize = () => info.default_size;
export const sizeMultiple = () => info.size_multiple;
export const limit = (name) => info.limits?.[name] ?? Infinity;
