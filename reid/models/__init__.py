"""Networks: backbone, neck, perspective planes, PPT."""
