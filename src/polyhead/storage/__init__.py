"""How what is stored becomes the keys and values of each head, in torch."""
