"""Stage one: a frozen CLIP teacher goes once over an image set; what it said is kept in Zarr."""
