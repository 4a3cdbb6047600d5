"""Curation: from raw repositories to a training corpus, with every drop accounted for."""
