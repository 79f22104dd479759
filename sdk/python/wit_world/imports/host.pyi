# Generated from sdk/wit; do not edit.
"""What a hook plugin may ask of its host. Every answer is recorded for replay and priced in one budget per call."""
from abc import abstractmethod
from dataclasses import dataclass
from enum import Enum
from typing import List, Optional, Protocol, Tuple, Union

from ..imports import types

class Level(Enum):
    DEBUG = 0
    INFO = 1
    WARN = 2
    ERROR = 3

def log(level: Level, text: str) -> None:
    """A line for the merchant's log. Longer than 1 KiB is cut; more than 16 KiB in one call ends the call."""
    raise NotImplementedError

def lookup_product(sku: str) -> Optional[types.Product]:
    """A product of the same site, or none."""
    raise NotImplementedError

def kv_get(key: str) -> Optional[bytes]:
    """A value of the site's edge data, or none."""
    raise NotImplementedError
