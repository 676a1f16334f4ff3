"""Arguments checked in one way, and what users are told about them."""
