"""One file per method: its Config, its network, its training loss, its reconstruction."""
