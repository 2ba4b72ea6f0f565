"""Sums over examples of phi(gradient) for one use of a parameter, from its input and the gradient at its output."""
