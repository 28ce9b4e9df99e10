// The settings that a picture of ours holds in its file: a text in a PNG, an XMP packet in JPEG and WebP.

const KEY = "mobileo-mlx";

/** The settings in an image file, or null where there are none. */
export async function settingsOf(file) {
  const data = new Uint8Array(await file.arrayBuffer());
  try {
    const text = isPng(data) ? pngText(data) : xmpText(data);
    const found = text && JSON.parse(text);
    return found && typeof found === "object" && typeof found.prompt === "string" ? found : null;
  } catch {
    return null; // damaged: a picture like any other
  }
}

const isPng = (data) => [0x89, 0x50, 0x4e, 0x47].every((byte, i) => data[i] === byte);

const latin = (data) => new TextDecoder("latin1").decode(data);

// A chunk is its length, four letters, the data and a checksum; a tEXt chunk is a key, a zero and the text.
function pngText(data) {
  const view = new DataView(data.buffer);
  for (let at = 8; at + 12 <= data.length;) {
    const length = view.getUint32(at);
    const kind = latin(data.subarray(at + 4, at + 8));
    if (kind === "tEXt") {
      const text = latin(data.subarray(at + 8, at + 8 + length));
      if (text.startsWith(`${KEY}\0`)) return text.slice(KEY.length + 1);
    }
    at += 12 + length;
  }
  return null;
}

function xmpText(data) {
  const found = /mobileo:settings="([^"]*)"/.exec(latin(data));
  // Its entities are those of HTML. A document that is only parsed runs and loads nothing.
  return found && new DOMParser().parseFromString(found[1], "text/html").documentElement.textContent;
}
