"""How position enters, in torch: queries and keys rotated, or a bias for the score."""
