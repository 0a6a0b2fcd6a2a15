"""Published models: manifest, weight leaves and root, fetching by hash, reading checkpoints."""
