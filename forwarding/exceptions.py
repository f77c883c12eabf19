"""Errors raised by :mod:`forwarding`."""

__all__ = ("ForwardingError",)


class ForwardingError(TypeError):
    """A forwarding declaration is wrong, missing its target, or cut off.

    Wrong declarations are reported while the class is being made.
    """
