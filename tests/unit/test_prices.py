"""The table of prices: what is in it, and what is not."""

from __future__ import annotations

from aios.abi.calls import CoreSpec, Price
from aios.drivers.cores.configured import facts_of
from aios.drivers.prices import price_of


def test_a_model_of_a_provider_has_its_price() -> None:
    price = price_of("gpt-4o-mini", provider="openai")
    assert price is not None
    assert 0 < price.prompt < price.answer
    assert price.cached is not None
    assert price.cached < price.prompt
    assert price == price_of("gpt-4o-mini", url="https://api.openai.com/v1")


def test_what_nobody_knows_has_none() -> None:
    assert price_of("no-such-model", provider="openai") is None
    assert price_of("gpt-4o-mini", url="http://127.0.0.1:8000/v1") is None


def test_what_is_written_counts_more_than_the_table() -> None:
    written = CoreSpec(kind="provider", provider="openai", model="gpt-4o-mini", price=Price(1, 2))
    assert facts_of("x", written).price == Price(1, 2)
    assert facts_of("x", CoreSpec(kind="embedded", model="gpt-4o-mini")).price is None
