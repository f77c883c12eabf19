"""Attributes that also answer on the class: ``W.make()``, ``W.LIMIT``."""

from types import FunctionType
from typing import Any


__all__ = ("ClassLevelData", "ClassLevelMethod")


class ClassLevelData(property):
    """A property that gives, on the class, what the target's class has."""

    __forwarding_owner__: tuple[type, str]

    def __get__(self, wrapper: Any, owner: type | None = None, /) -> Any:
        if wrapper is None:
            return getattr(*self.__forwarding_owner__)
        return super().__get__(wrapper, owner)


class ClassLevelMethod:
    """A method that is, on the class, the target's class method."""

    def __init__(self, function: FunctionType, target: type, name: str) -> None:
        self.function = function
        self._target = target
        self._name = name
        self.__doc__ = function.__doc__

    def __get__(self, wrapper: Any, owner: type | None = None, /) -> Any:
        if wrapper is None:
            return getattr(self._target, self._name)
        return self.function.__get__(wrapper, owner)
