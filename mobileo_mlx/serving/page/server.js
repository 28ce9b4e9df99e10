// The line at the foot: model, device, memory and speed.

import { byId } from "./dom.js";
import { modelName } from "./info.js";
import { bytes, seconds } from "./words.js";

export function showServer(found) {
  byId("server-model").textContent = modelName();
  byId("server-device").textContent = found.device?.name ?? "";
  byId("server-memory").textContent = found.memory?.peak ? `${bytes(found.memory.peak)} at most` : "";
  byId("server-speed").textContent = found.speed?.seconds_per_step ? `${seconds(found.speed.seconds_per_step)} per step` : "";
}
