"""One file per library: how it is set up, as its own documentation recommends."""
