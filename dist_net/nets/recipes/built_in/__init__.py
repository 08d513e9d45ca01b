"""The built-in recipes: files of the form that a user's own recipe has."""
