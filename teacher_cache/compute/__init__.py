"""How parts of a cache are computed, and by whom."""
