"""Stand-in for ``monailabel_app.pipelines.cache``."""


class MapCache:
    def __init__(self, max_bytes):
        self.max_bytes = max_bytes
