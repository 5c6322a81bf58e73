"""Everything that other libraries do not promise, in one file for each library.

Each file names the private or unstable part, the versions in which it was seen, and the public way that is
used if it is missing: the same result, slower. `tests/teacher_cache/compat/` runs both ways. No other file
uses a private name of another library (`tests/test_imports.py`).
"""
