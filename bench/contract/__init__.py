"""What every method must keep to, checked on toy data: `kdbench check`, and the tests of the built-in methods."""
