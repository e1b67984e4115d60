"""Whose a request is: API keys, their tenants, and what a key may ask for in a minute."""
