"""A core in a process of its own: a crash in native code costs a restart, never the kernel.

From the kernel inwards: ``core`` (asyncio, spawns and restarts the worker), ``wire`` (what is said
between the two), ``process`` (the other process: one engine behind one socket).
"""
