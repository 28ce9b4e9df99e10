// Vercel's AI SDK against the server of the first argument; prints what it was answered, as JSON.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateImage, generateText, jsonSchema, streamText, tool } from "ai";

const provider = createOpenAICompatible({ name: "mobileo", baseURL: `${process.argv[2]}/v1`, includeUsage: true });
const model = provider("tiny");
const image = Buffer.from(process.argv[3], "base64");
const found = {};

const text = await generateText({ model, prompt: "what is a star?" });
found.chat = text.text;
found.usage = text.usage.outputTokens;

const stream = streamText({ model, prompt: "what is a star?" });
found.stream = "";
for await (const piece of stream.textStream) found.stream += piece;
found.streamUsage = (await stream.usage).outputTokens;

const content = [{ type: "text", text: "what color is the shape?" }, { type: "image", image, mediaType: "image/png" }];
found.seen = (await generateText({ model, messages: [{ role: "user", content }] })).text;

const schema = { type: "object", properties: { prompt: { type: "string" } }, required: ["prompt"] };
const tools = { generate_image: tool({ description: "draws", inputSchema: jsonSchema(schema) }) };
found.call = (await generateText({ model, prompt: "draw a red star", tools })).toolCalls[0].input;

const drawn = await generateImage({ model: provider.imageModel("tiny"), prompt: "a red star", size: "64x64" });
found.drawn = drawn.image.base64.slice(0, 8);

console.log(JSON.stringify(found));
