"""How one use's contribution to the per-example gradients is held."""
