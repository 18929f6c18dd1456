"""Generation → citations: which characters of which document an answer rests on."""
