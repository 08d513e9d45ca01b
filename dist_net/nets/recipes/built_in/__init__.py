"""The built-in recipes, in the form of a user's recipe file."""
