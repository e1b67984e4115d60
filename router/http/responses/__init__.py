"""`/v1/responses`: created, answered whole or as events, kept and given again."""
