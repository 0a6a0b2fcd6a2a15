"""The trust rule and the attestation game: a model equal to the contracts, simulations, and what they show."""
