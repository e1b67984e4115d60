"""Data planes, one folder each, behind one interface."""
