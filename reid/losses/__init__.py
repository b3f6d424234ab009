"""Identity, triplet and plane losses over the global batch."""
