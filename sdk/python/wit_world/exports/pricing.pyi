# Generated from sdk/wit; do not edit.
from abc import abstractmethod
from dataclasses import dataclass
from enum import Enum
from typing import List, Optional, Protocol, Tuple, Union

from ..imports import types

@dataclass
class Target_Line:
    """The `id` of a line of this call."""
    value: int

@dataclass
class Target_Cart:
    """The whole cart, after all lines."""

Target = Union[Target_Line, Target_Cart]

@dataclass
class Effect_Percent:
    """Basis points of the running amount: -1000 is ten per cent off."""
    value: int

@dataclass
class Effect_Amount:
    """Added to the running amount: -250 is 2.50 off in a currency with two decimals."""
    value: int

@dataclass
class Effect_UnitPrice:
    """Replaces the price of one unit; lines only."""
    value: int

Effect = Union[Effect_Percent, Effect_Amount, Effect_UnitPrice]

@dataclass
class Adjustment:
    target: Target
    effect: Effect
    code: str
    """Stable, machine-readable, `[a-z0-9_.-]{1,64}`."""
    label: str
    """For the shopper, at most 120 bytes."""
