"""From messages to the text of a prompt, by the model's own chat template.

The template is the GGUF's Jinja, run in a sandbox. One that knows nothing of tools gets them as
plain text: the tools in the system message, calls and results as the turns of assistant and user.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from aios.abi.messages import Message, ToolSpec
from aios.errors import InvalidCall

# for a base model, whose file has no template
PLAIN = """{% for turn in messages %}{{ turn.role }}: {{ turn.content }}

{% endfor %}assistant:"""
TOOLS = """You can call functions. The functions are:
<tools>
{tools}
</tools>
To call one, answer with nothing but
<tool_call>{{"name": "the function", "arguments": {{"argument": "value"}}}}</tool_call>"""


class Template:
    """A chat template. *control* is how control tokens are spelt: content cannot forge them."""

    def __init__(self, source: str | None, bos: str, eos: str, control: tuple[str, ...]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals.update(raise_exception=_refuse, strftime_now=_now)
        environment.filters["tojson"] = _json
        self._template = environment.from_string(source or PLAIN)
        self._knows_tools = "tools" in (source or "")
        self._bos, self._eos, self._control = bos, eos, control

    def render(self, messages: tuple[Message, ...], tools: tuple[ToolSpec, ...]) -> str:
        """The prompt, up to where the assistant begins to speak; InvalidCall if it cannot be."""
        turns = [self._turn(message) for message in messages]
        if not self._knows_tools:
            turns = with_plain_tools(turns, self._clean(_tool_block(tools)) if tools else "")
        refusal: Exception | None = None
        # a strict template wants user and assistant by turns, some no system prompt at all
        for way in (turns, _joined(turns), _joined(_without_system(turns))):
            try:
                return self._template.render(
                    messages=way,
                    tools=[_function(tool) for tool in tools] if tools else None,
                    add_generation_prompt=True,
                    bos_token=self._bos,
                    eos_token=self._eos,
                )
            except (jinja2.TemplateError, TypeError, ValueError) as error:
                refusal = refusal or error
        raise InvalidCall(
            f"the model's chat template refuses these messages: {refusal}."
        ) from refusal

    def _turn(self, message: Message) -> dict[str, Any]:
        turn: dict[str, Any] = {"role": message.role, "content": self._clean(message.content)}
        if message.name:
            turn["name"] = self._clean(message.name)
        if message.tool_call_id:
            turn["tool_call_id"] = message.tool_call_id
        if message.tool_calls:
            turn["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": self._arguments(call.arguments)},
                }
                for call in message.tool_calls
            ]
        return turn

    def _arguments(self, text: str) -> Any:
        try:
            return json.loads(self._clean(text))
        except ValueError:
            return self._clean(text)

    def _clean(self, text: str) -> str:
        """A control token's spelling in what somebody said is broken up: it is only text."""
        for spelling in self._control:
            if spelling in text:
                text = text.replace(spelling, f"{spelling[0]}\u200b{spelling[1:]}")
        return text


def plain_turns(messages: tuple[Message, ...], tools: tuple[ToolSpec, ...]) -> list[dict[str, Any]]:
    """The turns of a conversation with its tools as plain text, for a server's own template."""
    template = Template(None, "", "", ())
    turns = [template._turn(message) for message in messages]
    return with_plain_tools(turns, _tool_block(tools) if tools else "")


def with_plain_tools(turns: list[dict[str, Any]], block: str) -> list[dict[str, Any]]:
    """Tools as text: *block* describes them, calls and results are said by the two sides."""
    turns = _without_tool_turns(turns)
    return _with_system(turns, block) if block else turns


def _tool_block(tools: tuple[ToolSpec, ...]) -> str:
    lines = (
        _json({"name": t.name, "description": t.description, "parameters": t.parameters})
        for t in tools
    )
    return TOOLS.format(tools="\n".join(lines))


def _function(tool: ToolSpec) -> dict[str, Any]:
    return {
        "type": "function",
        "function": {
            "name": tool.name,
            "description": tool.description,
            "parameters": tool.parameters,
        },
    }


def _with_system(turns: list[dict[str, Any]], text: str) -> list[dict[str, Any]]:
    """Add *text* at the end of the system message, or as one."""
    if turns and turns[0]["role"] == "system":
        joined = f"{turns[0]['content']}\n\n{text}"
        return [{**turns[0], "content": joined}, *turns[1:]]
    return [{"role": "system", "content": text}, *turns]


def _joined(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Turns of one role that follow each other become one."""
    found: list[dict[str, Any]] = []
    for turn in turns:
        last = found[-1] if found else {}
        tied = {"tool_calls", "tool_call_id"} & (last.keys() | turn.keys())
        if last.get("role") == turn["role"] and not tied:
            found[-1] = {**last, "content": f"{last['content']}\n\n{turn['content']}"}
        else:
            found.append(turn)
    return found


def _without_system(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the system says is said by the user."""
    return [{**turn, "role": "user"} if turn["role"] == "system" else turn for turn in turns]


def _without_tool_turns(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Calls become what the assistant said, results what the user said back."""
    found: list[dict[str, Any]] = []
    for turn in turns:
        if calls := turn.pop("tool_calls", None):
            said = "\n".join(f"<tool_call>{_json(call['function'])}</tool_call>" for call in calls)
            turn["content"] = f"{turn['content']}\n{said}".strip()
        if turn["role"] == "tool":
            answer = f"<tool_response>{turn['content']}</tool_response>"
            if found and found[-1].get("answers"):
                found[-1]["content"] += f"\n{answer}"
                continue
            turn = {"role": "user", "content": answer, "answers": True}
        found.append(turn)
    return found


def _json(value: Any, indent: int | None = None, **_: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _now(form: str) -> str:
    return datetime.now().strftime(form)


def _refuse(why: str) -> NoReturn:
    raise jinja2.TemplateError(why)
