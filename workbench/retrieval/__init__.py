"""A question becomes ranked hits: sentence vectors, exact search, BM25, fusion by rank."""
