# Generated from sdk/wit; do not edit.
from abc import abstractmethod
from dataclasses import dataclass
from enum import Enum
from typing import List, Optional, Protocol, Tuple, Union

@dataclass
class Context:
    """What a decision may depend on beside its subject. Every field is fixed before the call."""
    now_ms: int
    """Milliseconds since 1970-01-01T00:00:00Z, frozen for the whole request."""
    currency: str
    """ISO 4217, e.g. `GBP`. One currency per call."""
    country: str
    """ISO 3166-1 alpha-2 of where the cart is to be delivered, e.g. `FR`; empty when not known."""
    region: Optional[str]
    """ISO 3166-2 subdivision, where known."""
    language: str
    """BCP 47, e.g. `en-GB`; empty when not known."""
    segments: List[str]
    """Segments of a shopper who signed in, vouched for by the merchant's token; never taken from the request."""
    customer: Optional[str]
    """The shopper's customer number, from the same token."""
    coupons: List[str]
    """Coupon codes that the shopper entered, upper case, sorted."""
    seed: int
    """Fixed per cart (or per listing): the only source of chance a plugin has."""
    settings: str
    """The release's settings, JSON, exactly as the merchant deployed them."""

@dataclass
class StockHint_Unknown:
    pass

@dataclass
class StockHint_Out:
    pass

@dataclass
class StockHint_Low:
    value: int

@dataclass
class StockHint_InStock:
    pass

StockHint = Union[StockHint_Unknown, StockHint_Out, StockHint_Low, StockHint_InStock]
"""What is known at the edge about stock. Never a promise: the region decides at checkout."""

@dataclass
class Product:
    sku: str
    title: str
    price: int
    compare_at: Optional[int]
    tags: List[str]
    attributes: List[Tuple[str, str]]
    stock: StockHint

@dataclass
class Line:
    """One line of a cart, as the plugins before this one left it."""
    id: int
    """Names the line within this call only."""
    product: Product
    quantity: int
    amount: int
    """`price` times `quantity` after the adjustments of the plugins before this one."""
    added_by: Optional[str]
    """Which plugin added the line (a gift, a bundle part); none for a line that the shopper added."""

@dataclass
class Refusal:
    """A plugin's "no", for the shopper to read."""
    code: str
    """Stable, machine-readable, `[a-z0-9_]{1,64}`."""
    message: str
    """One sentence, at most 500 bytes."""
