"""The embedded core: llama.cpp in a worker process.

``core`` (its settings), ``engine`` (decides what each batch computes), ``sequences``, ``prefixes``
and ``cells`` (who owns which KV cells), ``residency`` and ``disk`` (where else KV states live),
``guesses`` (tokens that may follow), ``searches`` and ``branches`` (beam searches, and where they
lie), ``snapshots`` (files), ``binding`` (the C API).
"""
