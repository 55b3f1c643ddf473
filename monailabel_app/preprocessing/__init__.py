"""From a scan as it came to a brain in template space."""
