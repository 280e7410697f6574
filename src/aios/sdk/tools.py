"""Python functions as tools: described to the model, called through the kernel, run here."""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, get_type_hints, overload

import msgspec

from aios.abi.calls import ToolAnswer, ToolCall, ToolInvocation, ToolNext, ToolRegister, ToolReturn
from aios.abi.messages import Effect, Message, ToolSpec, ToolUse
from aios.errors import InvalidCall, NotFound
from aios.sdk import place, schema

if TYPE_CHECKING:
    from aios.sdk.process import Me

P = ParamSpec("P")
T = TypeVar("T")


class Tool(Generic[P, T]):
    """A function that a model may ask for; calling it yourself just calls the function."""

    def __init__(self, function: Callable[P, T], effect: Effect = "once") -> None:
        self.function = function
        self._arguments = _arguments(function)
        text = inspect.getdoc(function) or ""
        parameters = schema.of_type(self._arguments)
        for name, line in _described(text, parameters["properties"]).items():
            parameters["properties"][name].setdefault("description", line)
        parameters.pop("title", None)
        self.spec = ToolSpec(
            name=function.__name__,
            description=re.split(r"\n\s*\n|\n\s*Args:", text)[0].replace("\n", " ").strip(),
            parameters=parameters,
            effect=effect,
        )

    def __repr__(self) -> str:
        return f"<Tool {self.spec.name} effect={self.spec.effect}>"

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.function(*args, **kwargs)

    async def run(self, arguments: dict[str, Any]) -> str:
        """Its result as text; a plain function runs in a thread. InvalidCall: they do not fit."""
        try:
            given = msgspec.convert(arguments, self._arguments)
        except msgspec.ValidationError as error:
            raise InvalidCall(f"the arguments of {self.spec.name} do not fit: {error}") from error
        named = {name: getattr(given, name) for name in given.__struct_fields__}
        function: Callable[..., Any] = self.function
        if inspect.iscoroutinefunction(function):
            result = await function(**named)
        else:
            result = await asyncio.to_thread(function, **named)
        return result if isinstance(result, str) else msgspec.json.encode(result).decode()


@overload
def tool(function: Callable[P, T], /) -> Tool[P, T]: ...
@overload
def tool(*, effect: Effect = "once") -> Callable[[Callable[P, T]], Tool[P, T]]: ...
def tool(function: Callable[..., Any] | None = None, /, *, effect: Effect = "once") -> Any:
    """Make a function a tool: its schema from the annotations, its description from the docstring.

    A docstring's lines of the form ``name: what it is`` describe the parameters. effect says what
    a call does to the world: ``none`` (a look), ``idempotent`` (doing it again changes nothing) or
    ``once`` (never again without asking; the default).
    """
    if function is not None:
        return Tool(function, effect)
    return lambda function: Tool(function, effect)


class Workshop:
    """The tools of one process: offers them to the kernel and carries out what it passes on."""

    def __init__(self, me: Me) -> None:
        self._me = me
        self._tools: dict[str, Tool[..., Any]] = {}
        self._busy: set[str] = set()  # calls of them that were taken and not answered yet
        self._service: asyncio.Task[None] | None = None

    async def offer(self, tools: Iterable[Tool[..., Any]]) -> None:
        """Have the kernel know these tools (and those offered before)."""
        new = {tool.spec.name: tool for tool in tools}
        if all(self._tools.get(name) is tool for name, tool in new.items()):
            return
        self._tools |= new
        await self._me.call(ToolRegister(tools=tuple(tool.spec for tool in self._tools.values())))
        if self._service is None:
            with place.at(None):  # the order of invocations is the world's, not the program's
                self._service = asyncio.create_task(self._serve())

    async def answer(self, use: ToolUse) -> Message:
        """What to tell the model about a tool that it asked for; its mistakes are answers too."""
        try:
            arguments = msgspec.json.decode(use.arguments or "{}", type=dict[str, Any])
        except msgspec.DecodeError as error:
            answer = ToolAnswer(f"the arguments are not a JSON object: {error}", is_error=True)
        else:
            answer = await self._call(use.name, arguments)
        return Message(role="tool", content=answer.content, name=use.name, tool_call_id=use.id)

    async def close(self) -> None:
        service, self._service = self._service, None
        if service:
            service.cancel()
            await asyncio.wait([service])

    async def _call(self, name: str, arguments: dict[str, Any]) -> ToolAnswer:
        try:
            call = ToolCall(name=name, arguments=arguments, place=place.next_path())
            calling = asyncio.ensure_future(self._me.call(call, ToolAnswer))
            waiting = {calling, self._service} if self._service else {calling}
            try:
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                if not calling.done() and self._service:
                    self._service.result()  # nobody is left to carry the call out: say why
                return await calling
            finally:
                calling.cancel()
        except (InvalidCall, NotFound) as error:
            return ToolAnswer(error.message, is_error=True)

    async def _serve(self) -> None:
        async with asyncio.TaskGroup() as group:
            while True:
                invocation = await self._me.call(ToolNext(busy=tuple(self._busy)), ToolInvocation)
                self._busy.add(invocation.id)
                group.create_task(self._carry_out(invocation))

    async def _carry_out(self, invocation: ToolInvocation) -> None:
        # its call's number: the same in a next life, which is handed only what has no result yet
        name, inside = invocation.name, place.Place(f"{invocation.name}.{invocation.id}/")
        try:
            with place.at(inside):
                content, is_error = await self._tools[name].run(invocation.arguments), False
        except Exception as error:  # noqa: BLE001 (the model is told, and may do better)
            content, is_error = f"{type(error).__name__}: {error}", True
        with suppress(NotFound):  # nobody waits for it any more: it was cancelled, or timed out
            await self._me.call(ToolReturn(id=invocation.id, content=content, is_error=is_error))
        self._busy.discard(invocation.id)


def _arguments(function: Callable[..., Any]) -> type[msgspec.Struct]:
    """The parameters of a function as a Struct, one field each."""
    hints = get_type_hints(function, include_extras=True)
    fields: list[Any] = []
    for parameter in inspect.signature(function).parameters.values():
        where = f"the parameter {parameter.name!r} of the tool {function.__name__}"
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise InvalidCall(f"{where} stands for any number: a tool names all its parameters.")
        if parameter.name not in hints:
            raise InvalidCall(f"{where} has no annotation: say its type, as in `{parameter}: str`.")
        required = parameter.default is parameter.empty
        field = (parameter.name, hints[parameter.name])
        fields.append(field if required else (*field, parameter.default))
    return msgspec.defstruct(function.__name__, fields, kw_only=True, forbid_unknown_fields=True)


def _described(text: str, names: Iterable[str]) -> dict[str, str]:
    """The lines of a docstring that describe parameters."""
    lines = (re.match(r"\s*(\w+)\s*(?:\([^)]*\))?\s*:\s+(.+)", line) for line in text.splitlines())
    found = {line[1]: line[2].strip() for line in lines if line}
    return {name: found[name] for name in names if name in found}
