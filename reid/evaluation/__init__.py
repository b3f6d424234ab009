"""Feature extraction, exact ranking, protocols, metrics and reports."""
