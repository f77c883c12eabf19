"""Sizes and counts that were chosen for speed and memory.

None of them decides what is guaranteed: with other values every bound, every margin
and every law of noise is the same, and results differ by the order of roundings at
most. Margins and tolerances do decide, and stand where they are argued for.

Values for the host were found on a machine of two cores, those for accelerators on an
NVIDIA H100. Those without a note are round numbers that did as well as their
neighbours, or were not measured.
"""

from typing import Final


# Elements of a parameter up to which it is handled together with others. Holding
# small gradients costs less than the calls that a Gram norm takes.
SMALL_PARAMETER: Final = 4096
# Bytes of gradients or products at a time: of the host what its caches hold, of an
# accelerator enough to keep it busy.
CHUNK_BYTES: Final = {"cpu": 8 << 20}
ACCELERATOR_CHUNK_BYTES: Final = 64 << 20
# Bytes of convolution windows at a time on the host: one core's cache.
WINDOW_CHUNK_BYTES: Final = 1 << 20
# Pairs of channels from which a product of windows is faster than a convolution of as
# many groups as examples. On the host 386 ms and 13 ms for 512 x 512 channels at
# 7 x 7; on an accelerator it always is, 4 times as fast and more.
MANY_CHANNEL_PAIRS: Final = {"cpu": 64 * 64}
# Bytes of one use's gradients that are not worth counting against the budget.
UNCOUNTED_BYTES: Final = 1 << 16
# Multiplications in the time that it takes to write and read a number three times.
FLOPS_PER_ELEMENT: Final = 40
# Rows of the blocks in which a host computes Gram matrices without half of their mirror
# images, and the entries of a factor's matrices from which that pays. With AVX-512, norms
# of 8 examples with 200 positions and 384 by 1536 columns take 9.2 ms instead of 10.4, and
# 11.0 in blocks of 32, which with AVX2 were faster.
ROWS_OF_GRAM: Final = 64
FEWEST_GRAM_ENTRIES: Final = 1 << 15
# What held gradients may take beyond what the backward pass frees: a share of the
# activations' bytes, and for a small model as much as one chunk of a large one.
ALLOWED_SHARE: Final = 0.05
ALLOWED_BYTES: Final = 8 << 20
# Without a rule: bytes of gradients of several examples at once.
FALLBACK_CHUNK_BYTES: Final = 32 << 20
# Identical layers that are served as one: from how many, and up to which size of one
# layer's outputs. Above it, calls no longer dominate.
FEWEST_IDENTICAL_LAYERS: Final = 3
LARGEST_LAYER_BYTES: Final = 1 << 16
# Forms of graphs that are remembered, and sizes of each, such as those of batches.
KNOWN_GRAPHS: Final = 4
KNOWN_SIZES: Final = 256
# The same where units are given, whose rows are listed one by one.
KNOWN_UNITS: Final = 2
# Operations from which a call of a compiled function pays.
FEWEST_COMPILED_OPERATIONS: Final = 2

# Sums: elements of a parameter up to which its sum lies in one buffer with others, so that
# noise is added to all of them in one call. Half a megabyte: larger ones would make a
# buffer that malloc asks the kernel for at every step.
SMALL_SUM: Final = 1 << 17
BUCKET_BYTES: Final = 32 << 20  # Of sums that ranks exchange in one call.

# Noise: elements of a chunk on the host. A chunk ends with refining the few elements that
# float32 left, which costs 0.1 ms however few they are.
HOST_CHUNK: Final = 1 << 20
SHORT_HOST_CHUNK: Final = 1 << 16
# Elements that are drawn and rounded while they are in cache.
HOST_BLOCK: Final = 1 << 17
# Elements drawn in numpy's operations before numba is loaded: they take 2.7 ns more each
# than a compiled loop, which is loaded in 0.6 s; and a call as much as so many elements.
DRAWN_BEFORE_NUMBA: Final = 1 << 27
CALL_IN_ELEMENTS: Final = 1 << 15
DEVICE_CHUNK_BYTES: Final = 1 << 27  # Worth the launches, and their temporaries.
CHUNKS_PER_THREAD: Final = 2  # Fewer are not worth a thread.
# Without a kernel: threads wait for each other between numpy's calls, and 16 of them took
# twice as long as 2.
MOST_THREADS_IN_NUMPY: Final = 2
# Undecided elements at a time on a device: temporaries take 8 bytes each.
CANDIDATES_AT_ONCE: Final = 1 << 21
LEAST_KEYSTREAM_SHARE: Final = 1 << 20  # Bytes that are worth a thread: 0.2 ms.
# Longest vectors of one call of the float32 stage: bytes, where temporaries take up
# to four times as many, and elements, where they take 3 to 17 bytes each.
LONGEST_IN_TORCH: Final = 1 << 26
LONGEST_IN_ONE_KERNEL: Final = 1 << 25
