# Generated from sdk/wit; do not edit.
from abc import abstractmethod
from dataclasses import dataclass
from enum import Enum
from typing import List, Optional, Protocol, Tuple, Union

from ..imports import types

@dataclass
class OrderDraft:
    lines: List[types.Line]
    total: int

@dataclass
class Note:
    code: str
    text: str
