"""Small files that other versions of libraries wrote, for tests that read them."""
