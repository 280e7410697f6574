"""Models: which are known, and how one gets here."""

from aios.models.catalogue import (
    CATALOGUE,
    EMBEDDER,
    CatalogueEmbedder,
    CatalogueModel,
    Terms,
    Wheel,
)
from aios.models.embedder import EmbedderStore
from aios.models.room import Progress
from aios.models.store import ModelFile, ModelStore

__all__ = [
    "CATALOGUE",
    "EMBEDDER",
    "CatalogueEmbedder",
    "CatalogueModel",
    "EmbedderStore",
    "ModelFile",
    "ModelStore",
    "Progress",
    "Terms",
    "Wheel",
]
