"""The same noise, drawn on an accelerator."""
