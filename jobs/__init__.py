"""Entry scripts."""
