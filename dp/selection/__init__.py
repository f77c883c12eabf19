"""Choose the best of several private runs, at a price that is stated.

What choosing costs is in :mod:`dp.accounting._selection`; here runs are drawn, watched,
compared and certified. The number of runs stays secret until the end.
"""

from dp.selection._tune import Best, Tuned, tune


__all__ = ("Best", "Tuned", "tune")

for _public in (Best, Tuned):
    _public.__module__ = __name__  # What pickles and tracebacks show.
