"""Config -> objects: the only folder that knows all the others."""
