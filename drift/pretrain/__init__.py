"""The recipes that make the embedded models from openly licensed pictures."""
