"""Teachers: built, loaded, trained where they come without weights, and run once."""
