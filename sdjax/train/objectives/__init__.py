"""What is minimised, and what it needs: conditioning, masks, draws."""
