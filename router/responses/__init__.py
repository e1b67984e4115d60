"""OpenAI's Responses API as data: requests, items in and out, and the response object."""
