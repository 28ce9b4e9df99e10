// The package `openai` of npm against the server of the first argument; prints what it was answered, as JSON.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "what is a star?" }];
const found = {};

const answer = await client.chat.completions.create({ model: "gpt-4o", messages });
found.chat = answer.choices[0].message.content;
found.model = answer.model;

const chunks = [];
const options = { model: "gpt-4o", messages, stream: true, stream_options: { include_usage: true } };
for await (const chunk of await client.chat.completions.create(options)) chunks.push(chunk);
found.stream = chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "").join("");
found.withoutChoices = chunks.filter((chunk) => chunk.choices.length === 0).length;
found.usage = chunks.at(-1).usage;

const parameters = { type: "object", properties: { prompt: { type: "string" } }, required: ["prompt"] };
const runner = client.chat.completions.stream({
  model: "gpt-4o",
  messages: [{ role: "user", content: "draw a red star" }],
  tools: [{ type: "function", function: { name: "generate_image", parameters } }],
});
found.call = (await runner.finalChatCompletion()).choices[0].message.tool_calls[0].function;

found.events = [];
const draw = { model: "gpt-image-1", prompt: "a red star", stream: true, partial_images: 2, steps: 4 };
for await (const event of await client.images.generate(draw)) found.events.push(event.type);

const file = await OpenAI.toFile(Buffer.from(process.argv[3], "base64"), "a.png", { type: "image/png" });
const edited = await client.images.edit({ image: [file], prompt: "make it blue", steps: 2 });
found.edited = edited.data[0].b64_json.slice(0, 8);

try {
  await client.chat.completions.create({ model: "gpt-4o", messages, n: 2 });
} catch (error) {
  found.error = { status: error.status, param: error.param, code: error.code, type: error.type };
}

console.log(JSON.stringify(found));
