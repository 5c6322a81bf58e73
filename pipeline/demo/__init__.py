"""The packaged demo: pictures, a tiny teacher, and the comparison they serve."""
