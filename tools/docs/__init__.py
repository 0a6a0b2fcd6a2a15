"""The documents: the reference pages made from the sources, and the copy that the site is built from."""
