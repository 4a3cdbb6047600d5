"""The stages of curation, each a few steps over shards."""
