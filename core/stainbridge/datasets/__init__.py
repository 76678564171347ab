"""Readers of data sets with truth."""
