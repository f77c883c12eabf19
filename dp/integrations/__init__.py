"""Private training inside other people's training loops.

Each module here serves one framework, and only it imports that framework. What they
share is :class:`dp.DPOptimizer`, which every one of them may wrap and patch.
"""

__all__ = ()
