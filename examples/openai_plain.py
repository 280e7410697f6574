"""An ordinary program over the official OpenAI client: a chat, a stream, a tool, structured output.

It knows one thing about where it runs: nothing. With OPENAI_BASE_URL and OPENAI_API_KEY it talks to
whatever answers there. It exits 0 when each of the four gave something well formed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

from openai import OpenAI

MODEL = "gpt-4o-mini"

client = OpenAI()


def chat() -> bool:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[
            {"role": "system", "content": "You are a helpful assistant. Answer in one sentence."},
            {"role": "user", "content": "What is the capital of France?"},
        ],
        temperature=0,
        max_tokens=48,
    )
    text = answer.choices[0].message.content
    print(text)
    return bool(text and answer.usage and answer.usage.completion_tokens)


def stream() -> bool:
    chunks = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Count from one to five."}],
        temperature=0,
        max_tokens=48,
        stream=True,
        stream_options={"include_usage": True},
    )
    text, reason, usage = "", None, None
    for chunk in chunks:
        for choice in chunk.choices:
            print(choice.delta.content or "", end="", flush=True)
            text += choice.delta.content or ""
            reason = choice.finish_reason or reason
        usage = chunk.usage or usage
    print()
    return bool(text and reason in {"stop", "length"} and usage)


def get_weather(city: str) -> str:
    return json.dumps({"city": city, "sky": "clear", "celsius": 21})


def tools() -> bool:
    messages: list = [{"role": "user", "content": "What is the weather in Paris?"}]
    offered = [
        {
            "type": "function",
            "function": {
                "name": "get_weather",
                "description": "The weather in a city now.",
                "parameters": {
                    "type": "object",
                    "properties": {"city": {"type": "string", "maxLength": 40}},
                    "required": ["city"],
                    "additionalProperties": False,
                },
            },
        }
    ]
    called = 0
    for turn in range(3):
        answer = client.chat.completions.create(
            model=MODEL,
            messages=messages,
            tools=offered,
            tool_choice="required" if turn == 0 else "auto",
            temperature=0,
            max_tokens=64,
        )
        message = answer.choices[0].message
        messages.append(message)
        if not message.tool_calls:
            print(message.content)
            break
        for call in message.tool_calls:
            result = get_weather(**json.loads(call.function.arguments))
            print(f"{call.function.name}({call.function.arguments}) -> {result}")
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
            called += 1
    return called > 0


def structured() -> bool:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Name a fruit and its colour."}],
        response_format={
            "type": "json_schema",
            "json_schema": {
                "name": "fruit",
                "strict": True,
                "schema": {
                    "type": "object",
                    "properties": {
                        "fruit": {"type": "string", "maxLength": 30},
                        "colour": {"enum": ["red", "green", "yellow", "orange", "blue"]},
                    },
                    "required": ["fruit", "colour"],
                    "additionalProperties": False,
                },
            },
        },
        temperature=0,
        max_tokens=64,
    )
    found = json.loads(answer.choices[0].message.content or "")
    print(found)
    return set(found) == {"fruit", "colour"}


def main() -> int:
    steps: list[Callable[[], bool]] = [chat, stream, tools, structured]
    failed = []
    for step in steps:
        print(f"--- {step.__name__}")
        if not step():
            failed.append(step.__name__)
    print("all four are well formed" if not failed else f"not well formed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
