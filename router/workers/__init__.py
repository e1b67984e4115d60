"""The workers as this router knows them: who is there, what they say, what they have cached."""
