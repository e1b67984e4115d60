// The Vercel AI SDK with its default, which is the Responses API, and with chat and messages.
import assert from "node:assert/strict";
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, streamText, tool } from "ai";
import { z } from "zod";

const [url, name] = process.argv.slice(2);
const openai = createOpenAI({ baseURL: `${url}/v1`, apiKey: "none" });
const models = {
  responses: openai(name),
  chat: openai.chat(name),
  compatible: createOpenAICompatible({ name: "baton", baseURL: `${url}/v1`, includeUsage: true })(name),
  messages: createAnthropic({ baseURL: `${url}/v1`, apiKey: "none" })(name),
};
const prompt = "What is the weather in Paris?";
const getWeather = tool({
  description: "The weather of a city",
  inputSchema: z.object({ city: z.enum(["Paris", "Oslo"]) }),
});

for (const [api, model] of Object.entries(models)) {
  const settings = { model, prompt, maxRetries: 0, maxOutputTokens: 200 };
  const whole = await generateText(settings);
  assert.ok(whole.usage.outputTokens > 0, api);
  const stream = streamText({ ...settings, onError: ({ error }) => { throw error; } });
  for await (const _ of stream.textStream);
  assert.ok((await stream.usage).outputTokens > 0, api);
  const called = await generateText({
    ...settings, tools: { get_weather: getWeather }, toolChoice: "required",
  });
  assert.ok(["Paris", "Oslo"].includes(called.toolCalls[0].input.city), api);
  if (api === "responses" || api === "chat") {
    const schema = z.object({ name: z.string(), age: z.number().int() });
    const { object } = await generateObject({ ...settings, maxOutputTokens: 400, schema, temperature: 0 });
    schema.parse(object);
  }
}
