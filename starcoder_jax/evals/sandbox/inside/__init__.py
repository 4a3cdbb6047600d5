"""What runs inside the walls. Imports nothing but the standard library and itself."""
