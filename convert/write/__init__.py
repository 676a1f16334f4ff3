"""Writing models in any layout."""
