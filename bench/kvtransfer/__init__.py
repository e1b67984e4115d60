"""Baton's KV transfer beside other libraries: `make bench-kvtransfer`, see `__main__`."""
