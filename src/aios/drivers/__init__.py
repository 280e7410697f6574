"""Drivers: one file or folder for each thing in the outside world; they never import each other."""
