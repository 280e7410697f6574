"""The cores of this kernel: one for every model that is here, and those that config.toml describes.

Nothing is loaded before it is asked for; a core is started once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

from aios.abi.calls import CoreSpec
from aios.config import Config
from aios.drivers.cores.llama.core import LlamaCore
from aios.drivers.prices import price_of
from aios.errors import Conflict, InvalidCall, NotFound
from aios.ports import Clock, Core, CoreFacts


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
    """A ports.Cores. contexts is a folder for KV states that RAM does not hold."""

    def __init__(
        self, store: Store, config: Config, clock: Clock, contexts: Path | None = None
    ) -> None:
        self._store, self._config, self._clock, self._contexts = store, config, clock, contexts
        self._specs = dict(config.cores)
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

    def remove(self, name: str) -> None:
        if name not in self._specs:
            raise InvalidCall(
                f"{name} is a model that is here, not a core that was added: "
                f"`aios model rm {name}` removes it."
            )
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
            case other:
                raise InvalidCall(f"the core {name} is of the kind {other}, which is not here yet.")

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


def check(name: str, spec: CoreSpec) -> None:
    """InvalidCall where what a core needs is not said."""
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
