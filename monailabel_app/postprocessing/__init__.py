"""From an anomaly map to a mask and a list of lesions: smooth, erode the brain's edge, threshold, measure."""
