"""What cores that stand elsewhere have in common: a sequence is a stream, read slice by slice.

``core`` is the port over any ``upstream``, ``sequence`` one generation. An upstream opens the
stream in its own way: ``aios.drivers.cores.openai`` or ``aios.drivers.cores.provider``.
"""
