# Generated from sdk/wit; do not edit.
from abc import abstractmethod
from dataclasses import dataclass
from enum import Enum
from typing import List, Optional, Protocol, Tuple, Union

from ..imports import types

@dataclass
class Presentation:
    sku: str
    hidden: bool
    """Leave the product out of this page."""
    rank: int
    """Higher comes first; equal ranks keep the merchant's order. 0 where nothing is said."""
    badges: List[str]
    """Short labels to show with the product ("New", "-20 %"), at most 8 of 40 bytes."""
    title: Optional[str]
    """Another title for this shopper."""
