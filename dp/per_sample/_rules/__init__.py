"""Gradient rules: the per-example gradient of one kind of autograd node."""
