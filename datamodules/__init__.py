"""Data sets as streams of clips. One short file per data set, over `base`."""
