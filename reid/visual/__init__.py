"""Pictures: rank lists, activation maps, planes over images."""
