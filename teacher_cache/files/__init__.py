"""Small files: JSON, text, locks, and files that are written whole or not at all."""
