"""Models: which are known, and how one gets here."""

from aios.models.catalogue import CATALOGUE, CatalogueModel, Wheel
from aios.models.store import ModelFile, ModelStore, Progress

__all__ = ["CATALOGUE", "CatalogueModel", "ModelFile", "ModelStore", "Progress", "Wheel"]
