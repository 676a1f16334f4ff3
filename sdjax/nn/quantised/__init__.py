"""Quantised weights: leaves of a parameter tree that hold few bits a weight, and become arrays in the program."""
