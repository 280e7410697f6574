"""KV states outside a model: snapshot files of sequences, and files that only relieve the RAM.

For all cores that have the model themselves; what a KV state is made of is the engine's affair.
"""
