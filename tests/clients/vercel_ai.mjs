// The Vercel AI SDK with its default, which is the Responses API, and with chat and messages.
import assert from "node:assert/strict";
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embed, generateObject, generateText, stepCountIs, streamObject, streamText, tool } from "ai";
import { z } from "zod";

const [url, name] = process.argv.slice(2);
const openai = createOpenAI({ baseURL: `${url}/v1`, apiKey: "none" });
const models = {
  responses: openai(name),
  chat: openai.chat(name),
  compatible: createOpenAICompatible({ name: "baton", baseURL: `${url}/v1`, includeUsage: true, supportsStructuredOutputs: true })(name),
  messages: createAnthropic({ baseURL: `${url}/v1`, apiKey: "none" })(name),
};
const prompt = "What is the weather in Paris?";
const getWeather = tool({
  description: "The weather of a city",
  inputSchema: z.object({ city: z.enum(["Paris", "Oslo"]) }),
});

for (const [api, model] of Object.entries(models)) {
  const settings = { model, prompt, maxRetries: 0, maxOutputTokens: 200, temperature: 0 };
  const whole = await generateText(settings);
  assert.ok(whole.usage.outputTokens > 0, api);
  const stream = streamText({ ...settings, onError: ({ error }) => { throw error; } });
  for await (const _ of stream.textStream);
  assert.ok((await stream.usage).outputTokens > 0, api);
  const called = await generateText({
    ...settings, tools: { get_weather: getWeather }, toolChoice: "required",
  });
  assert.ok(["Paris", "Oslo"].includes(called.toolCalls[0].input.city), api);
  const steps = streamText({
    ...settings,
    tools: { get_weather: { ...getWeather, execute: ({ city }) => `sunny in ${city}` } },
    prepareStep: ({ stepNumber }) => (stepNumber ? {} : { toolChoice: "required" }),
    stopWhen: stepCountIs(2),
    onError: ({ error }) => { throw error; },
  });
  const parts = [];
  for await (const part of steps.fullStream) parts.push(part.type);
  assert.equal((await steps.steps).length, 2, api);
  for (const kind of ["tool-input-delta", "tool-call", "tool-result"]) assert.ok(parts.includes(kind), api);
  const schema = z.object({ name: z.string(), age: z.number().int() });
  const asked = { ...settings, maxOutputTokens: 400, schema };
  const { object } = await generateObject(asked);
  const streamed = streamObject(asked);
  for await (const _ of streamed.partialObjectStream);
  assert.deepEqual(await streamed.object, schema.parse(object), api);
}
const { embedding } = await embed({ model: openai.embedding(name), value: "a" });
assert.ok(embedding.length > 0);
