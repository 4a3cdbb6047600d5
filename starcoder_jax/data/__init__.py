"""From documents to batches: tokenizers, sources, token store, fill-in-the-middle, loader."""
