"""How good was an answer: numbers on texts, in pure Python."""
