"""What is normal, learnt from held-out healthy scans only: voxel statistics and operating points."""
