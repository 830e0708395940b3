"""Bayesian networks that come with the package; open them with `klprojax.load_model`."""
