"""The packaged demo: pictures, a tiny teacher, and a comparison of students."""
