"""Class names: vocabularies and their splits."""
