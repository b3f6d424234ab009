"""Networks: backbone, neck, perspective planes, attention, PPT, PANet, keypoint detector."""
