"""The autograd graph: its nodes, and where it uses private parameters."""
