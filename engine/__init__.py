"""Models and memory: turns token ids into token ids. No sockets, no text."""
