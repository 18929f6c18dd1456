"""Results → matplotlib Axes. Each function draws one picture on `ax` and returns it; none shows or closes anything."""
