"""Fences as in `teacher_cache/compat/`, around libraries that only stage two uses: one file a library."""
