"""Recipes: a network, its dataset and its training; built in or from a user's file."""
