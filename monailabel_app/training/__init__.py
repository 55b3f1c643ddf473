"""Training on healthy scans only: the loop, its augmentation, its checkpoints and its cache."""
