// The line at the foot: model, device, memory and speed.

import { byId } from "./dom.js";
import { modelName } from "./info.js";
import { speed } from "./jobs.js";
import { bytes, seconds } from "./words.js";

export function showServer(found) {
  byId("server-model").textContent = modelName();
  byId("server-device").textContent = found.device;
  byId("server-memory").textContent = found.memory?.peak ? `Peak memory ${bytes(found.memory.peak)}` : "";
  byId("server-speed").textContent = speed.step ? `${seconds(speed.step)} per step` : "";
}
