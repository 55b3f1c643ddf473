"""MONAI Label adapters, and nothing else: everything that analyses a scan lives in ``monailabel_app``.

MONAI Label drops ``lib.*`` from memory at every load of the app, so nothing here may need to keep its
identity, and all modules are imported when the app is loaded, never later.
"""
