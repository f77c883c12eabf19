"""The same noise, drawn and rounded on an accelerator."""
