"""The cores of this kernel: one for every model that is here, and those that config.toml describes.

Nothing is loaded before it is asked for; a core is started once.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, urlsplit

from aios.abi.calls import CoreSpec
from aios.config import Config
from aios.drivers.cores.gate import Gate, Gates, OnEvent
from aios.drivers.cores.llama.core import LlamaCore
from aios.drivers.cores.openai.core import OpenAICore
from aios.drivers.cores.provider import ProviderCore
from aios.drivers.cores.transformers.core import TransformersCore
from aios.drivers.cores.transformers.names import source_of
from aios.drivers.prices import price_of
from aios.errors import Conflict, CoreRefused, InvalidCall, NotFound, SetupError
from aios.ports import Clock, Core, CoreFacts

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,99}")
RESERVED = ("cheapest", "fastest", "local")  # what may be asked for instead of a core


class Stored(Protocol):
    """A model's file."""

    @property
    def name(self) -> str: ...

    @property
    def path(self) -> Path: ...

    @property
    def embedded(self) -> bool:
        """Whether the embedded core may be able to run it."""


class Store(Protocol):
    """Where models are kept."""

    def list(self) -> Sequence[Stored]: ...

    def ensure(self, name: str) -> Stored:
        """The model's file, fetched if it is not here."""


class ConfiguredCores:
    """A ports.Cores. contexts is a folder for KV states that RAM does not hold.

    ``on_gate`` hears what happens at the gates of providers, once it is set.
    """

    def __init__(
        self, store: Store, config: Config, clock: Clock, contexts: Path | None = None
    ) -> None:
        self._store, self._config, self._contexts = store, config, contexts
        self._gates = Gates(clock, self._tell)
        self.on_gate: OnEvent | None = None
        self._specs = dict(config.cores)
        for name, spec in self._specs.items():
            try:
                check(name, spec)
            except InvalidCall as error:
                raise SetupError(f"config.toml, [cores.{name}]: {error.message}") from error
        self.default = config.core.model

    def facts(self) -> list[CoreFacts]:
        here = [model.name for model in self._store.list() if model.embedded]
        names = [self.default, *self._specs, *here]
        embedded = CoreSpec(kind="embedded")
        return [facts_of(name, self._specs.get(name, embedded)) for name in dict.fromkeys(names)]

    def add(self, name: str, spec: CoreSpec) -> None:
        if name in [facts.name for facts in self.facts()]:
            raise Conflict(f"there is a core {name!r} already: remove it, or choose another name.")
        check(name, spec)
        self._specs[name] = spec

    def check_removable(self, name: str) -> None:
        if name not in self._specs:
            raise InvalidCall(
                f"{name} is a model that is here, not a core that was added: "
                f"`aios model rm {name}` removes it."
            )

    def remove(self, name: str) -> None:
        self.check_removable(name)
        del self._specs[name]

    async def open(self, name: str) -> Core:
        spec = self._specs.get(name)
        if spec is None and name not in [facts.name for facts in self.facts()]:
            raise NotFound(f"there is no core {name!r} here.")
        core = await self._make(name, spec or CoreSpec(kind="embedded"))
        try:
            await core.start()
        except BaseException:  # cancelled, too: nobody else knows of it yet
            await core.close()
            raise
        return core

    async def _make(self, name: str, spec: CoreSpec) -> Core:
        match spec.kind:
            case "embedded":
                return await self._embedded(name, spec)
            case "transformers":
                return self._transformers(name, spec)
            case "openai":
                return OpenAICore(
                    spec.url,
                    spec.model,
                    name,
                    gate=self._gate(spec),
                    key=partial(key_of, name, spec),
                    slots=spec.slots or None,
                    context_tokens=spec.context_tokens or None,
                    continues=spec.continues,
                )
            case "provider":
                return ProviderCore(
                    f"{spec.provider}:{spec.model}",
                    name,
                    gate=self._gate(spec),
                    key=partial(key_of, name, spec),
                    url=spec.url or None,
                    slots=spec.slots or None,
                    context_tokens=spec.context_tokens or None,
                    continues=bool(spec.continues),
                )

    def _gate(self, spec: CoreSpec) -> Gate:
        """One for a provider and key, however many cores share them."""
        place = urlsplit(spec.url).netloc if spec.url else spec.provider
        return self._gates.of(f"{place} {spec.key_env or spec.keyring}".strip())

    def _tell(self, what: str, fields: dict[str, Any]) -> None:
        if self.on_gate is not None:
            self.on_gate(what, fields)

    async def _embedded(self, name: str, spec: CoreSpec) -> Core:
        settings = self._config.core
        file = await asyncio.to_thread(self._store.ensure, spec.model or name)
        return LlamaCore(
            file.path,
            name,
            slots=spec.slots or settings.slots,
            threads=settings.threads,
            cells=settings.cells,
            ram_bytes=settings.ram_mb << 20,
            context_tokens=spec.context_tokens or None,
            max_restarts=settings.restarts,
            disk=self._disk(name),
            disk_bytes=settings.disk_mb << 20,
        )

    def _transformers(self, name: str, spec: CoreSpec) -> Core:
        settings = self._config.core
        return TransformersCore(
            source_of(spec.model),
            name,
            slots=spec.slots or settings.slots,
            threads=settings.threads,
            device=spec.device,
            max_memory=spec.max_memory or None,
            dtype=spec.dtype,
            quantization=spec.quantization or None,
            gguf_file=spec.gguf_file or None,
            token=os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN"),
            context_tokens=spec.context_tokens or None,
            ram_bytes=settings.ram_mb << 20,
            max_restarts=settings.restarts,
            disk=self._disk(name),
            disk_bytes=settings.disk_mb << 20,
            deterministic=spec.deterministic,
        )

    def _disk(self, name: str) -> Path | None:
        return self._contexts / quote(name, safe="") if self._contexts else None


def facts_of(name: str, spec: CoreSpec) -> CoreFacts:
    """What a core's description says of it, and the table of prices."""
    price = spec.price
    if price is None and spec.kind in ("openai", "provider"):
        price = price_of(spec.model or name, provider=spec.provider, url=spec.url)
    return CoreFacts(
        name,
        spec.kind,
        spec.model or name,
        spec.classes,
        price,
        spec.context_tokens,
        spec.url,
    )


def key_of(name: str, spec: CoreSpec) -> str | None:
    """A core's key, from where it is kept; CoreRefused if it is not there, None: it needs none."""
    if spec.key_env:
        key = os.environ.get(spec.key_env)
        if not key:
            raise CoreRefused(
                f"the core {name} finds no key in the environment variable {spec.key_env}: set it "
                "and start the kernel anew."
            )
        return key
    return _from_keyring(name, spec.keyring) if spec.keyring else None


def _from_keyring(name: str, entry: str) -> str:
    try:
        import keyring  # the machine's own, where there is one
        import keyring.errors
    except ImportError:
        raise CoreRefused(
            f"the core {name} has its key in the keyring: install aios with its extra [providers], "
            "or name an environment variable with key_env."
        ) from None
    try:
        key = keyring.get_password("aios", entry)
    except keyring.errors.KeyringError as error:
        raise CoreRefused(
            f"the keyring of this machine does not answer ({error}): name an environment variable "
            f"with key_env for the core {name}."
        ) from error
    if not key:
        raise CoreRefused(
            f"the keyring has no key {entry!r} of aios for the core {name}: "
            f"`keyring set aios {entry}` puts it there."
        )
    return key


def check(name: str, spec: CoreSpec) -> None:
    """InvalidCall for a name that cannot be, and where what a core needs is not said."""
    if not NAME.fullmatch(name) or name in RESERVED:
        raise InvalidCall(
            f"{name[:100]!r} is no name for a core: use letters, digits and . _ - /, at most 100, "
            f"and none of {', '.join(RESERVED)}."
        )
    if "@" in urlsplit(spec.url).netloc:
        raise InvalidCall(
            f"the address of the core {name} holds a name or a password: leave that out, and name "
            "the variable that holds the key with key_env."
        )
    if spec.kind == "openai" and not spec.url.startswith(("http://", "https://")):
        raise InvalidCall(
            f"the core {name} needs the address of its server, as in url = "
            f'"http://127.0.0.1:8000/v1", not {spec.url!r}.'
        )
    if spec.kind == "provider" and not spec.provider:
        raise InvalidCall(f'the core {name} needs its provider, as in provider = "anthropic".')
    if spec.kind in ("transformers", "provider") and not spec.model:
        raise InvalidCall(f"the core {name} needs a model.")
    if spec.kind == "embedded" and not spec.model:
        raise InvalidCall(f"the core {name} needs a model; `aios model list` shows those here.")
