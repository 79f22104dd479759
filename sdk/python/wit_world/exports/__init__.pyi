# Generated from sdk/wit; do not edit.
from abc import abstractmethod
from dataclasses import dataclass
from enum import Enum
from typing import List, Optional, Protocol, Tuple, Union

from ..imports import types
from ..exports import catalog
from ..exports import pricing
from ..exports import cart
from ..exports import checkout

class Catalog(Protocol):
    """Decorates a page of products: hides, ranks, badges, relabels. It cannot invent a product."""
    @abstractmethod
    def present(self, ctx: types.Context, products: List[types.Product]) -> List[catalog.Presentation]:
        """Products without a presentation are shown as they are."""
        # Raises: `componentize_py_types.Err(types.Refusal(...))`
        raise NotImplementedError

class Pricing(Protocol):
    """Changes prices by adjustments. Totals are the host's work, so that they add up and can be explained."""
    @abstractmethod
    def adjust(self, ctx: types.Context, lines: List[types.Line]) -> List[pricing.Adjustment]:
        """Applied in the order given. The price guard checks the result and drops all of it if a rule is broken."""
        # Raises: `componentize_py_types.Err(types.Refusal(...))`
        raise NotImplementedError

class Cart(Protocol):
    """Reviews a change to a cart before it is accepted."""
    @abstractmethod
    def review(self, ctx: types.Context, before: List[types.Line], change: cart.Change) -> List[cart.CartOp]:
        """An empty list accepts the change as it is. A refusal leaves the cart untouched."""
        # Raises: `componentize_py_types.Err(types.Refusal(...))`
        raise NotImplementedError

class Checkout(Protocol):
    """The last look at an order before it is placed."""
    @abstractmethod
    def review(self, ctx: types.Context, draft: checkout.OrderDraft) -> List[checkout.Note]:
        """Notes are kept with the order. A refusal stops the checkout and loses nothing."""
        # Raises: `componentize_py_types.Err(types.Refusal(...))`
        raise NotImplementedError
