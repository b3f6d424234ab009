"""Vehicle re-identification in plain PyTorch: data, models, losses, training, evaluation. No Ray in here."""

__version__ = "0.1.0"
