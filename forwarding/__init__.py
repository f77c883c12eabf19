"""Declare which attributes a wrapper forwards to the object it wraps."""

__all__ = ()
