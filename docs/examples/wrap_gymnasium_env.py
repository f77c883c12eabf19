"""gymnasium's ``Wrapper``, declared: a layer around an environment."""

from typing import Any

import gymnasium

from forwarding import Forwarded, Forwarding


class EnvWrapper(
    Forwarding, gymnasium.Env[Any, Any], to="env", forward=gymnasium.Env, exact=True
):
    """Forward the whole interface of an environment; override what should differ.

    Unlike gymnasium's, it has one truth: ``wrapper.np_random = x``, and every other
    assignment, reaches the environment. A layer with a space of its own says so:
    ``action_space = None``, or a property.
    """

    # Fluent: 'with wrapper as env' must not bind the bare environment.
    __enter__ = Forwarded(to="env", returns="wrapper")

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        self.env = env

    def has_wrapper_attr(self, name: str) -> bool:
        """Tell whether this layer or one below has an attribute."""
        return hasattr(self, name) or self.env.has_wrapper_attr(name)

    def get_wrapper_attr(self, name: str) -> Any:
        """Return the attribute of the outermost layer that has it."""
        if hasattr(self, name):
            return getattr(self, name)
        return self.env.get_wrapper_attr(name)

    def set_wrapper_attr(self, name: str, value: Any, *, force: bool = True) -> bool:
        """Set the attribute on the outermost layer that has it."""
        has_it = hasattr(self, name)
        if not has_it and self.env.set_wrapper_attr(name, value, force=False):
            return True
        if has_it or force:
            setattr(self, name, value)
        return has_it or force
