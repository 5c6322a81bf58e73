"""The cache on disk or in an object store: created, opened, committed by parts and verified."""
