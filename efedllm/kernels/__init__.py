"""Products with integer weights in C, built at installation when there is a compiler. Everything runs without it too."""
