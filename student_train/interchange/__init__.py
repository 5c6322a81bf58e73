"""Students and class features in the formats of other programs."""
