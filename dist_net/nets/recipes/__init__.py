"""Recipes: what to train, and how; the built-in ones and those of a user's file."""
