"""Training recipes of the embedded models; not part of the library `drift`."""
