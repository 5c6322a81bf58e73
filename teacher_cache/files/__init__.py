"""Files: JSON and text of other people, locks, and atomic writes."""
