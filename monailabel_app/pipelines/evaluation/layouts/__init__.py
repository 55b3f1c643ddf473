"""How data sets lie on disk: folders, tables, BIDS, MONAI Label's studies, healthy scans with implanted lesions."""
