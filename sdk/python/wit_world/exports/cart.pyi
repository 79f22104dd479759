# Generated from sdk/wit; do not edit.
from abc import abstractmethod
from dataclasses import dataclass
from enum import Enum
from typing import List, Optional, Protocol, Tuple, Union

from ..imports import types

@dataclass
class Change_Add:
    value: Tuple[str, int]

@dataclass
class Change_Set:
    """Line id and new quantity."""
    value: Tuple[int, int]

@dataclass
class Change_Remove:
    value: int

Change = Union[Change_Add, Change_Set, Change_Remove]

@dataclass
class CartOp_Cap:
    """Accept the change, but with at most this quantity on its line afterwards."""
    value: int

@dataclass
class CartOp_Put:
    """Put a line of this plugin's own into the cart (sku, quantity); quantity 0 takes it out."""
    value: Tuple[str, int]

@dataclass
class CartOp_Remove:
    """Take out a line of `before`."""
    value: int

CartOp = Union[CartOp_Cap, CartOp_Put, CartOp_Remove]
