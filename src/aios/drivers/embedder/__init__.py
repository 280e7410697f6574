"""The embedder: texts to vectors, on this machine."""
