"""How the tokens of a layer see each other, a kind of layer a file."""
