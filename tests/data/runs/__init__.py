"""Runs that an earlier version of rpp left unfinished, and the script that writes them."""
