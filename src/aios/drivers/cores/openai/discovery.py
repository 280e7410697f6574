"""Which server answers at an address, what it has, and what it can do.

    facts = await discover("http://127.0.0.1:8080/v1", key=lambda: None)

Asked in turn: the list of models (every server has one; its headers and owners often name the
server), then what only one kind of server answers. Nothing is changed there and no model is run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct

from aios.drivers.cores.openai.dialects import DIALECTS, Kind
from aios.drivers.cores.openai.failures import read, refusal
from aios.errors import AiosError, CoreFailed, CoreRefused, CoreTimeout, InvalidCall

if TYPE_CHECKING:
    import httpx2

LARGEST_ANSWER = 8 << 20  # bytes; the longest list of models seen has one million
ANSWER_S = 10.0  # for each question

OWNERS: dict[str, Kind] = {
    "llamacpp": "llama.cpp",
    "vllm": "vllm",
    "sglang": "sglang",
    "library": "ollama",
    "organization_owner": "lmstudio",
}
WINDOWS = ("max_model_len", "context_length", "max_context_length", "context_window")


class ModelFacts(Struct, frozen=True):
    """A model that a server has; context_tokens 0 where it does not say."""

    name: str
    context_tokens: int = 0


class ServerFacts(Struct, frozen=True):
    """A server: slots 0 where it does not say; continues that it goes on from an answer's text;
    knows_tools that its template does (else they must be told as text)."""

    kind: Kind
    version: str
    models: tuple[ModelFacts, ...]
    slots: int
    is_healthy: bool
    continues: bool
    knows_tools: bool = True

    def model(self, name: str) -> ModelFacts | None:
        return next((model for model in self.models if model.name == name), None)


def place(url: str) -> str:
    """An address as people may see it: without a login in it."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if ":" in host:
        host = f"[{host}]"
    return f"{parts.scheme}://{host}{f':{parts.port}' if parts.port else ''}{parts.path}"


def check_address(url: str) -> str:
    """The address without a slash at its end; InvalidCall if it is none."""
    try:
        parts = urlsplit(url)
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_good = False
    if not is_good:
        raise InvalidCall(
            "a model server's address must be like http://127.0.0.1:8080/v1, not "
            f"{url.rpartition('@')[2]!r}."
        )
    return url.rstrip("/")


def root(url: str) -> str:
    """Where a server keeps what is not OpenAI's."""
    return url.removesuffix("/v1")


def authorization(key: str | None, where: str) -> dict[str, str]:
    """The header for a key; CoreFailed for one that no header can carry."""
    if key is None:
        return {}
    if not key.isascii() or not key.isprintable() or " " in key or not key:
        raise CoreRefused(
            f"the key for {where} is empty or has characters that no header carries; set it anew."
        )
    return {"Authorization": f"Bearer {key}"}


def client(url: str, connect_s: float, stall_s: float) -> httpx2.AsyncClient:
    """Connections to one server.

    Kept for the next request only where a new one is dear (TLS). llama-server closes some right
    after a stream, and a request that meets such an end (one in twelve, measured) fails unanswered:
    nobody can tell whether it was taken, so nobody may send it again.
    """
    import httpx2  # only a process that speaks to servers needs it

    kept = 32 if url.startswith("https:") else 0

    return httpx2.AsyncClient(
        timeout=httpx2.Timeout(stall_s, connect=connect_s),
        limits=httpx2.Limits(
            max_connections=None, max_keepalive_connections=kept, keepalive_expiry=4.0
        ),
        headers={"User-Agent": "aios"},
    )


def unreachable(error: Exception, where: str, stall_s: float) -> AiosError:
    """What went wrong below HTTP, in our words: those of the library may show anything."""
    import httpx2

    if isinstance(error, (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.UnsupportedProtocol)):
        return CoreFailed(f"no connection to {where}; start the server, or mend its address.")
    if isinstance(error, httpx2.TimeoutException):
        return CoreTimeout(f"{where} said nothing for {stall_s:g} s; see whether it is stuck.")
    return CoreFailed(
        f"{where} broke the connection ({type(error).__name__}); see whether it still runs."
    )


class Questions:
    """Small questions to one server, with its key."""

    def __init__(
        self, http: httpx2.AsyncClient, url: str, key: Callable[[], str | None], stall_s: float
    ) -> None:
        self._http, self._key, self._stall_s = http, key, min(stall_s, ANSWER_S)
        self.url, self.place = url, place(url)

    async def ask(self, address: str, body: Any = None) -> tuple[int, dict[str, str], bytes]:
        """GET it, or POST *body* to it: status, headers and what was answered."""
        import httpx2

        key = self._key()
        headers = authorization(key, self.place)
        content = None
        if body is not None:
            content = msgspec.json.encode(body)
            headers["Content-Type"] = "application/json"
        received = bytearray()
        try:
            async with (
                asyncio.timeout(self._stall_s),
                self._http.stream(
                    "GET" if body is None else "POST", address, content=content, headers=headers
                ) as response,
            ):
                async for part in response.aiter_bytes():
                    received += part
                    if len(received) > LARGEST_ANSWER:
                        raise CoreFailed(
                            f"{place(address)} answers more than {LARGEST_ANSWER >> 20} MiB; "
                            "it is no model server."
                        )
                return response.status_code, dict(response.headers), bytes(received)
        except TimeoutError:
            raise CoreTimeout(
                f"{place(address)} did not answer within {self._stall_s:g} s; "
                "see whether it is stuck."
            ) from None
        except (httpx2.HTTPError, httpx2.StreamError) as error:
            raise unreachable(error, self.place, self._stall_s) from None

    async def json(self, path: str, body: Any = None) -> dict[str, Any]:
        """What the server's own *path* answers; empty if that is not there or no object."""
        status, _, received = await self.ask(root(self.url) + path, body)
        if status != 200:
            return {}
        try:
            data = msgspec.json.decode(received)
        except msgspec.DecodeError:
            return {}
        return data if isinstance(data, dict) else {}

    async def models(self) -> tuple[dict[str, str], list[dict[str, Any]]]:
        """The headers and entries of the list of models; an error if there is no list."""
        status, headers, received = await self.ask(f"{self.url}/models")
        key = self._key()
        if status != 200:
            raise refusal(status, read(received), self.place, "its models", key)
        try:
            entries = msgspec.json.decode(received)["data"]
            models = [one for one in entries or [] if isinstance(one.get("id"), str)]
        except (msgspec.DecodeError, KeyError, TypeError, AttributeError):
            raise CoreRefused(
                f"{self.place}/models is no list of models, so this is no OpenAI-compatible "
                "server; give the address up to and with /v1."
            ) from None
        return headers, models


async def discover(
    url: str,
    key: Callable[[], str | None] | None = None,
    *,
    connect_s: float = 5.0,
    answer_s: float = ANSWER_S,
) -> ServerFacts:
    """What is at an address; CoreFailed, CoreTimeout or InvalidCall say why that is not known."""
    url = check_address(url)
    async with client(url, connect_s, answer_s) as http:
        return await look(Questions(http, url, key or (lambda: None), answer_s))


async def look(questions: Questions) -> ServerFacts:
    headers, entries = await questions.models()
    models = tuple(ModelFacts(entry["id"], _window(entry)) for entry in entries)
    kind = _guess(questions.url, headers, entries)
    facts = ServerFacts(kind, "", models, 0, True, DIALECTS[kind].continues)
    if kind == "openai":
        return facts
    kinds = (kind,) if kind != "unknown" else tuple(DETAILS)
    for one in kinds:
        if (found := await DETAILS[one](questions, facts)) is not None:
            return msgspec.structs.replace(
                found, kind=one, continues=DIALECTS[one].continues and found.continues
            )
    return facts


def _count(value: Any) -> int:
    is_count = isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 31
    return value if is_count else 0


def _window(entry: dict[str, Any]) -> int:
    meta = entry.get("meta")
    if isinstance(meta, dict) and (tokens := _count(meta.get("n_ctx"))):
        return tokens
    return next((tokens for name in WINDOWS if (tokens := _count(entry.get(name)))), 0)


def _guess(url: str, headers: dict[str, str], entries: list[dict[str, Any]]) -> Kind:
    if "openai-version" in headers or urlsplit(url).hostname == "api.openai.com":
        return "openai"
    if headers.get("server", "").startswith("llama.cpp"):
        return "llama.cpp"
    owners = {entry.get("owned_by") for entry in entries}
    return next((kind for owner, kind in OWNERS.items() if owner in owners), "unknown")


def _with_windows(facts: ServerFacts, tokens: int) -> tuple[ModelFacts, ...]:
    return tuple(ModelFacts(m.name, tokens or m.context_tokens) for m in facts.models)


async def _llama(questions: Questions, facts: ServerFacts) -> ServerFacts | None:
    props = await questions.json("/props")
    if "total_slots" not in props:
        return None
    settings = props.get("default_generation_settings")
    window = _count(settings.get("n_ctx")) if isinstance(settings, dict) else 0
    health = await questions.json("/health")
    can = props.get("chat_template_caps")
    return msgspec.structs.replace(
        facts,
        version=str(props.get("build_info", "")),
        models=_with_windows(facts, window),
        slots=_count(props["total_slots"]),
        is_healthy=health.get("status") == "ok",
        continues=True,
        knows_tools=not isinstance(can, dict) or can.get("supports_tools") is not False,
    )


async def _sglang(questions: Questions, facts: ServerFacts) -> ServerFacts | None:
    info = await questions.json("/get_server_info") or await questions.json("/server_info")
    if "max_total_num_tokens" not in info and "tp_size" not in info:
        return None
    status, _, _ = await questions.ask(root(questions.url) + "/health")
    window = _count(info.get("context_length"))
    return msgspec.structs.replace(
        facts,
        version=str(info.get("version", "")),
        models=_with_windows(facts, window),
        slots=_count(info.get("max_running_requests")),
        is_healthy=status == 200,
        continues=True,
    )


async def _vllm(questions: Questions, facts: ServerFacts) -> ServerFacts | None:
    version = (await questions.json("/version")).get("version")
    if not isinstance(version, str):
        return None
    status, _, _ = await questions.ask(root(questions.url) + "/health")
    return msgspec.structs.replace(facts, version=version, is_healthy=status == 200, continues=True)


async def _ollama(questions: Questions, facts: ServerFacts) -> ServerFacts | None:
    version = (await questions.json("/api/version")).get("version")
    if not isinstance(version, str):
        return None
    loaded = (await questions.json("/api/ps")).get("models") or []
    windows = {
        entry.get("name"): _count(entry.get("context_length"))
        for entry in loaded
        if isinstance(entry, dict)
    }
    models = tuple(ModelFacts(m.name, windows.get(m.name, 0)) for m in facts.models)
    return msgspec.structs.replace(facts, version=version, models=models)


async def _lmstudio(questions: Questions, facts: ServerFacts) -> ServerFacts | None:
    entries = (await questions.json("/api/v0/models")).get("data")
    if not isinstance(entries, list):
        return None
    windows = {
        entry.get("id"): _count(entry.get("loaded_context_length"))
        or _count(entry.get("max_context_length"))
        for entry in entries
        if isinstance(entry, dict)
    }
    models = tuple(ModelFacts(m.name, windows.get(m.name, 0)) for m in facts.models)
    return msgspec.structs.replace(facts, models=models)


DETAILS: dict[Kind, Callable[[Questions, ServerFacts], Awaitable[ServerFacts | None]]] = {
    "llama.cpp": _llama,
    "sglang": _sglang,
    "vllm": _vllm,
    "ollama": _ollama,
    "lmstudio": _lmstudio,
}
