"""Attacks on the network as small strategies, and what the verifiers' own code makes of them."""
