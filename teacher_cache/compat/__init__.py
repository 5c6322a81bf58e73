"""Fences around what other libraries do not promise: one file a library.

Each names the private or unstable thing, the versions it was seen in, and the public way that is taken where
it is gone: the same result, slower. `tests/teacher_cache/compat/` runs both. Outside these files no
private name of another library is used (`tests/test_imports.py`).
"""
