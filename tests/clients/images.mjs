// Draws with the npm package `openai`: node images.mjs FOLDER-OF-NODE_MODULES URL. Prints what came as JSON.
import { createRequire } from "node:module";

const [folder, url] = process.argv.slice(2);
const { default: OpenAI, toFile } = createRequire(`${folder}/`)("openai");
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const prompt = "a red circle on a blue background";

const drawn = await client.images.generate({ prompt, n: 2, seed: 7, steps: 2 });
const events = [];
const stream = await client.images.generate({ prompt, stream: true, partial_images: 2, seed: 7, steps: 6 });
for await (const event of stream) events.push(event);
const picture = await toFile(Buffer.from(drawn.data[0].b64_json, "base64"), "a.png", { type: "image/png" });
const edited = await client.images.edit({ image: [picture, picture], prompt: "make the circle green", steps: 2 });
let error;
try {
  await client.images.generate({ prompt, n: 11 });
} catch (caught) {
  error = { status: caught.status, code: caught.code, param: caught.param };
}
console.log(JSON.stringify({ drawn, events, edited, error }));
