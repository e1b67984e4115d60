"""Models and memory: turns token ids into token ids, without sockets and without text."""
