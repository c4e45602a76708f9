"""Annotations in the forms that people keep them in, read as instance labels."""
