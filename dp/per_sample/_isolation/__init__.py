"""Which rows of a tensor belong to which example, and that no two share one."""
