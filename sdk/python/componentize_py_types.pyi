"""The part of componentize-py's own types that a hook needs: a refusal is `raise Err(Refusal(...))`."""
from dataclasses import dataclass
from typing import Generic, TypeVar, Union

T = TypeVar("T")
E = TypeVar("E")


@dataclass
class Some(Generic[T]):
    value: T


@dataclass
class Ok(Generic[T]):
    value: T


@dataclass
class Err(Generic[E], Exception):
    value: E


Result = Union[Ok[T], Err[E]]
