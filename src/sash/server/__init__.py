"""`sash serve`: the OpenAI and Mistral APIs over the engine. The event loop only passes messages; it never computes."""
