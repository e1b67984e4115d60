"""The first hour on a bare GPU machine, in stages: checked, profiled, tuned, served."""
