"""Errors raised by :mod:`forwarding`."""

__all__ = ("ForwardingError", "TargetMissingError")


class ForwardingError(TypeError):
    """A forwarding declaration is wrong, missing its target, or cut off.

    Wrong declarations are reported while the class is being made.
    """


class TargetMissingError(AttributeError, ForwardingError):
    """Nothing is bound now where a dynamic target is looked up.

    It is an AttributeError too, so ``hasattr`` answers False instead of raising.
    """
