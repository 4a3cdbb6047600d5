"""Where arrays live: mesh and sharding rules."""
