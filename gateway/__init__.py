"""The front: HTTP and WebSocket in, jobs out, tokens back. No torch, no model, no token buffer."""
