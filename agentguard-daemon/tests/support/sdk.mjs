// The official libraries for Node, as anybody uses them. Prints what they give as JSON lines.
import { createRequire } from "node:module";
const require = createRequire(process.argv[2] + "/x.js");
const OpenAI = require("openai");
const Anthropic = require("@anthropic-ai/sdk");
const [mode, openaiUrl, anthropicUrl, apiKey] = process.argv.slice(3);
const o = new (OpenAI.default ?? OpenAI)({ baseURL: openaiUrl, apiKey });
const a = new (Anthropic.default ?? Anthropic)({ baseURL: anthropicUrl, apiKey });
const messages = [{ role: "user", content: "How is the weather in Köln?" }];
const tools = [{ type: "function", function: { name: "weather", parameters: { type: "object", properties: {} } } }];
const show = (name, value) => console.log(JSON.stringify([name, value]));
const all = async (stream) => { const list = []; for await (const it of stream) list.push(it); return list; };
if (mode === "all") {
  show("chat", await o.chat.completions.create({ model: "m", messages }));
  show("chat tools", await o.chat.completions.create({ model: "m", messages, tools }));
  show("chat stream", await all(await o.chat.completions.create({ model: "m", messages, stream: true, stream_options: { include_usage: true } })));
  show("responses", await o.responses.create({ model: "m", input: "hi" }));
  show("messages", await a.messages.create({ model: "m", max_tokens: 9, messages }));
  show("messages stream", await all(await a.messages.create({ model: "m", max_tokens: 9, messages, stream: true })));
} else {
  for (const [name, call, type] of [
    ["openai", () => o.chat.completions.create({ model: "m", messages }), (OpenAI.default ?? OpenAI).RateLimitError],
    ["anthropic", () => a.messages.create({ model: "m", max_tokens: 9, messages }), (Anthropic.default ?? Anthropic).RateLimitError],
  ]) {
    try { await call(); show(name, "no error"); }
    catch (error) { show(name, [error instanceof type, error.message, error.status]); }
  }
}
