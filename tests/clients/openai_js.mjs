// The openai SDK for JavaScript: chat, tools, parse helpers, responses, whole and streamed.
import assert from "node:assert/strict";
import OpenAI from "openai";
import { zodResponseFormat, zodResponsesFunction, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

const [url, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "What is the weather in Paris?" }];
const parameters = {
  type: "object",
  properties: { city: { type: "string", enum: ["Paris", "Oslo"] } },
  required: ["city"],
  additionalProperties: false,
};
const fn = { name: "get_weather", description: "The weather of a city", parameters, strict: true };
const tools = [{ type: "function", function: fn }];
const cities = ["Paris", "Oslo"];

const whole = await client.chat.completions.create({ model, messages, max_tokens: 20, seed: 1 });
const stream = client.chat.completions.stream({ model, messages, max_tokens: 20, seed: 1 });
assert.equal(await stream.finalContent(), whole.choices[0].message.content);

const called = await client.chat.completions.create({
  model, messages, tools, tool_choice: "required", seed: 1,
});
assert.equal(called.choices[0].finish_reason, "tool_calls");
const [call] = called.choices[0].message.tool_calls;
assert.ok(cities.includes(JSON.parse(call.function.arguments).city));
const calling = client.chat.completions.stream({
  model, messages, tools, tool_choice: "required", seed: 1,
});
const last = await calling.finalChatCompletion();
assert.equal(last.choices[0].message.tool_calls[0].function.arguments, call.function.arguments);

const Person = z.object({ name: z.string(), age: z.number().int() });
const parsed = await client.chat.completions.parse({
  model, messages, temperature: 0, max_tokens: 400,
  response_format: zodResponseFormat(Person, "person"),
});
Person.parse(parsed.choices[0].message.parsed);

let runs = 0;
const runner = client.chat.completions.runTools({
  model, messages, tool_choice: "required", max_tokens: 60,
  tools: [{
    type: "function",
    function: { ...fn, parse: JSON.parse, function: ({ city }) => { runs += 1; return `sunny in ${city}`; } },
  }],
}, { maxChatCompletions: 2 });
await runner.done();
assert.ok(runs > 0);

const response = await client.responses.create({ model, input: "Hi", max_output_tokens: 20 });
assert.ok(response.usage.output_tokens > 0);
const kinds = [];
for await (const event of await client.responses.create({
  model, input: "Hi", max_output_tokens: 20, stream: true,
})) kinds.push(event.type);
assert.equal(kinds[0], "response.created");
assert.ok(["response.completed", "response.incomplete"].includes(kinds.at(-1)));

const answer = await client.responses.parse({
  model, input: "Who?", temperature: 0, max_output_tokens: 400, text: { format: zodTextFormat(Person, "person") },
});
Person.parse(answer.output_parsed);
const City = z.object({ city: z.enum(cities) });
const asking = client.responses.stream({
  model, input: "What is the weather in Paris?", tool_choice: "required",
  tools: [zodResponsesFunction({ name: "get_weather", parameters: City })],
});
City.parse((await asking.finalResponse()).output.find((item) => item.type === "function_call").parsed_arguments);
const { data } = await client.embeddings.create({ model, input: ["a", "b"] });
assert.equal(data.length, 2);
const long = [{ role: "user", content: "long ".repeat(4000) }];
await assert.rejects(client.chat.completions.create({ model, messages: long }), { code: "context_length_exceeded" });
