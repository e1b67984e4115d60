"""One request from placement to ending: a pure state machine and who carries out what it says."""
