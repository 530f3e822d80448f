"""The official libraries, as anybody uses them. Prints what they give as JSON lines."""
import json
import sys

import anthropic
import openai

mode, openai_url, anthropic_url, key, ca = sys.argv[1:6]
verify = ca if ca != "-" else True
o = openai.OpenAI(base_url=openai_url, api_key=key, http_client=openai.DefaultHttpxClient(verify=verify))
a = anthropic.Anthropic(base_url=anthropic_url, api_key=key, http_client=anthropic.DefaultHttpxClient(verify=verify))
messages = [{"role": "user", "content": "How is the weather in Köln?"}]
o_tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}]
a_tools = [{"name": "weather", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}]


def show(name, value):
    print(json.dumps([name, value], sort_keys=True, ensure_ascii=False, default=str), flush=True)


if mode == "all":
    for tools in ({}, {"tools": o_tools}):
        show("chat", o.chat.completions.create(model="m", messages=messages, **tools).model_dump())
        stream = o.chat.completions.create(model="m", messages=messages, stream=True, stream_options={"include_usage": True}, **tools)
        show("chat stream", [chunk.model_dump() for chunk in stream])
    show("responses", o.responses.create(model="m", input="hi").model_dump(mode="json"))
    show("responses stream", [event.model_dump(mode="json") for event in o.responses.create(model="m", input="hi", stream=True)])
    show("embeddings", o.embeddings.create(model="m", input="hi", encoding_format="float").model_dump())
    show("models", [model.model_dump() for model in o.models.list()])
    for tools in ({}, {"tools": a_tools}):
        show("messages", a.messages.create(model="m", max_tokens=9, messages=messages, **tools).model_dump())
        with a.messages.stream(model="m", max_tokens=9, messages=messages, **tools) as stream:
            show("messages stream", [event.type for event in stream] + [stream.get_final_message().model_dump()])
else:
    for name, call, error in (
        ("openai", lambda: o.chat.completions.create(model="m", messages=messages), openai.RateLimitError),
        ("openai stream", lambda: list(o.chat.completions.create(model="m", messages=messages, stream=True)), openai.RateLimitError),
        ("responses", lambda: o.responses.create(model="m", input="hi"), openai.RateLimitError),
        ("anthropic", lambda: a.messages.create(model="m", max_tokens=9, messages=messages), anthropic.RateLimitError),
    ):
        try:
            call()
            show(name, "no error")
        except error as raised:
            show(name, [type(raised).__name__, raised.message, raised.status_code, raised.response.headers.get("retry-after") is not None])
