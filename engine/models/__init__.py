"""Models as data: families as rows, layers of orthogonal parts, configs and rotations."""
