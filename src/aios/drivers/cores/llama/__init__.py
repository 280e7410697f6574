"""The embedded core: llama.cpp in a worker process of its own.

From the kernel inwards: ``core`` (asyncio, spawns and restarts the worker), ``wire`` (what is said
between the two), ``worker`` (the other process), ``engine`` (decides what each batch computes),
``sequences``, ``prefixes`` and ``cells`` (who owns which KV cells), ``sampling``, ``grammar``,
``template`` and ``answer`` (tokens to text), ``snapshots`` (files), ``binding`` (the C API).
"""
