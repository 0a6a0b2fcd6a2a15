"""What is hashed, signed and proven: canonical bytes, Merkle trees, typed messages, link checks."""
