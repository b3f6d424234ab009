"""Everything that needs Ray: training workers, evaluation workers, parallel packing."""
