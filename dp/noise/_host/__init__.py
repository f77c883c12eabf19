"""Exactly rounded Gaussian noise, drawn on the host."""
