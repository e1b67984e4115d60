"""Device pools over planes of hosts: chunks go through page-locked memory on either side."""
