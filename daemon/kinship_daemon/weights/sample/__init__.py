"""Kinship from a sample: the same few blocks of every model of a base, with standard errors."""
