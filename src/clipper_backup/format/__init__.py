"""What the bytes mean: object names and the documents we write. Pure functions, no input or output."""
