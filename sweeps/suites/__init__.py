"""Suites: comparisons of methods under one budget, each a TOML file of this folder."""
