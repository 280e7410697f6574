"""What cloud models cost, by the table that comes with genai-prices; nothing is fetched."""

from __future__ import annotations

from functools import cache

from aios.abi.calls import Price

TOKENS = 1_000  # to ask the price of: few enough for the first tier where there are several
MILLION = 1_000_000 / TOKENS


@cache
def price_of(model: str, *, provider: str = "", url: str = "") -> Price | None:
    """Of a model of a provider, or of the server at an address; None if the table has it not."""
    from genai_prices import Usage, calc_price  # 0.15 s: only who asks for a price pays them

    def dollars(usage: Usage) -> float:
        if provider:
            found = calc_price(usage, model_ref=model, provider_id=provider)
        else:
            found = calc_price(usage, model_ref=model, provider_api_url=url)
        return float(found.total_price) * MILLION

    try:
        return Price(
            prompt=dollars(Usage(input_tokens=TOKENS)),
            answer=dollars(Usage(output_tokens=TOKENS)),
            cached=dollars(Usage(input_tokens=TOKENS, cache_read_tokens=TOKENS)),
        )
    except LookupError:
        return None
