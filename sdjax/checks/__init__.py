"""Checks of arguments, and the hints and notes that users see about them."""
