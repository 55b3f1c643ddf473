"""Stand-in for ``monailabel_app.pipelines.cache``."""


class MapCache:
    def __init__(self, max_bytes, store=None):
        self.max_bytes, self.store = max_bytes, None

    def purge(self):
        pass
