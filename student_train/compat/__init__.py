"""Access to private names of libraries that only stage two uses, one file a library."""
