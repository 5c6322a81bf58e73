"""Image sources -> one table of samples; the bytes and the pixels of each sample.

The headers of a source are read once into rows of (key, path, offset, length, label). After that every image
is read from its location, in any order. `views.py` decides which part of an image a model sees.
"""
