"""Checks a whole store file by file, says what is wrong with it, and mends it."""
