"""The server: an OpenAI-compatible front, and the engines behind it."""
