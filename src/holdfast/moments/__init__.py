"""Sums over examples of phi(gradient), phi the square or the absolute value, for every trainable parameter."""
