"""Products with integer weights in C, built at installation where there is a compiler. All runs without it too."""
