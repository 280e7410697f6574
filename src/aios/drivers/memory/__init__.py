"""Memory: records in the journal's database, found by words and, with an embedder, by meaning."""
