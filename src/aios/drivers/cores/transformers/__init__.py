"""Causal models of Hugging Face: `pip install 'aios[hf]'`.

From the kernel inwards: ``core`` (what boot makes; imports nothing heavy), ``start`` (what the
worker process calls), ``engine`` (the loop of turns), ``sequences`` and ``residency`` (where each
KV lies), ``prefixes`` (prompt chunks kept for others), ``cells`` (the tensors), ``attention`` and
``experts`` (what the model's own code calls instead of its own), ``loading`` (from a name to a
model, or to one sentence that says why not).
"""
