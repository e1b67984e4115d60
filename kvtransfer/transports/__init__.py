"""Data planes, one file each, behind one interface."""
