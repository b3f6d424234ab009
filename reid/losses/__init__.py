"""Losses over the global batch: identity, triplet, planes, PANet's masks; heat maps."""
