"""An engine's steps on a device that works while the host thinks ahead: a GPU, or its stand-in."""
